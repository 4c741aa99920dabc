"""The tensor of a source: as its module holds it, computes it, or as accelerate keeps it somewhere else.

Owns: reading one source. Must not find its owner (`source.py`), nor apply transforms (`link.py`). Read next: `link.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tied.binding.computed_source import read_attribute
from tied.binding.source import gone
from tied.ledger import links


def read_source(module: nn.Module | None, name: str) -> Tensor:
    """Return the tensor of that name, also where it is computed; refuse what would read itself."""
    tensor = None if module is None else module._parameters.get(name)
    if tensor is None and module is not None and name in links(module):
        _refuse_circle(module, name)
    return tensor if tensor is not None else _attribute(module, name)


def fetched(owner: nn.Module, name: str) -> Tensor | None:
    """Return a source from where accelerate keeps it, if its own is on the meta device; None if nobody keeps it."""
    tensor = read_source(owner, name)
    if not tensor.is_meta:
        return tensor
    hook = owner.__dict__.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):
        held: Any = getattr(one, "weights_map", None)
        if held is not None and name in held:
            return held[name].to(getattr(one, "execution_device", None))
    return None


def _refuse_circle(module: nn.Module, name: str) -> None:
    """Refuse to read what would read itself: a tied module was put in the place of its own source's."""
    seen: list[tuple[nn.Module | None, str]] = []
    waiting: list[tuple[nn.Module | None, str]] = [(module, name)]
    while waiting:
        owner, attribute = waiting.pop()
        link = links(owner).get(attribute) if owner is not None else None
        if link is None:
            continue
        for address, source in link.sources.items():
            place = (source.find(link.home), address[-1])
            if place == (module, name):
                raise gone(address, f"in its place stands {type(module).__name__}, which is tied to it")
            if place not in seen:
                seen.append(place)
                waiting.append(place)


def _attribute(module: nn.Module | None, name: str) -> Tensor:
    # An AttributeError must not leave a property of a module: nn.Module would word it as its own.
    try:
        tensor = getattr(module, name) if module is None else read_attribute(module, name)
    except AttributeError as error:
        raise gone((name,), f"{type(module).__name__} has no '{name}' any more") from error
    if not isinstance(tensor, Tensor):
        raise gone((name,), f"'{name}' of {type(module).__name__} is {type(tensor).__name__}")
    return tensor
