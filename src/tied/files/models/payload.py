"""What the file of a model holds: each value once, and the equations that give the rest.

Owns: the step from a model to named tensors and a ledger, and what cannot be saved. Must not open files, nor
change the model. Read next: `save.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.algebra import Expression, Ref
from tied.errors import KindError
from tied.files.models.model_names import Names
from tied.files.reading.dtypes import dtype_name
from tied.files.reading.file_ledger import Equation, Layout, Ledger, name_of
from tied.files.reading.refusal import shown
from tied.files.reading.strict_json import METADATA
from tied.sharding import gathered, is_first_process, is_sharded


@dataclass(frozen=True)
class Payload:
    """The tensors of a file by name, in order, and its equations.

    Attributes:
        tensors: What is stored. They may share memory with the model, and lie anywhere.
        ties: Every name that equals an expression of others, stored or not.
        writes: Whether this process is the one that writes: where a model is sharded, the first does.
    """

    tensors: dict[str, Tensor]
    ties: tuple[Equation, ...]
    writes: bool = True

    def ledger(self, layout: Layout) -> Ledger | None:
        """Return the ledger; None where there is nothing to say."""
        return Ledger(layout, self.ties) if self.ties else None


def payload(model: nn.Module, layout: Layout, needed: Callable[[Equation], bool] | None = None) -> Payload:
    """Return what a file of `model` holds.

    Law: the stored tensors and the equations give every value of the untied model's state dict; in the compact
    layout no value is stored twice, but for the targets that are `needed`.

    Args:
        model: Any module; it is not changed.
        layout: `"expanded"` stores every target too.
        needed: Tells which targets to store in any case.

    Raises:
        KindError: Something in it cannot be stored: without values, no tensor, of a kind that no header names.
    """
    with torch.no_grad():
        names = Names.of(model)
        for name, value in names.values.items():
            _check(name, value)
        stored, writes = _whole(names.stored)
        for name, link in names.computed.items():
            stored[name] = link.read().detach().as_subclass(Tensor)
            _check(name, stored[name])
        ties = tuple(_equation(name, source, stored) for name, source in names.sources.items())
        for tie in ties:
            if tie.target not in stored and (layout == "expanded" or (needed and needed(tie))):
                stored[tie.target] = tie.restore(stored.__getitem__)
    return Payload(_ordered(stored, names.keys), ties, writes)


def _ordered(tensors: dict[str, Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors in the order of the state dict, the widest elements first, so that all are aligned."""
    places = {name: place for place, name in enumerate(keys)}
    ranks = {name: (-tensor.element_size(), places.get(name, len(places))) for name, tensor in tensors.items()}
    return {name: tensors[name] for name in sorted(tensors, key=ranks.__getitem__)}


def _equation(name: str, source: Expression, stored: Mapping[str, Tensor]) -> Equation:
    if name in stored:
        value = stored[name]
    elif isinstance(source, Ref):
        value = stored[name_of(source.address)]
    else:
        value = source.infer({a: _meta(stored[name_of(a)]) for a in source.sources()})
    return Equation(name, source, str(dtype_name(value.dtype)), tuple(value.shape))


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


# -- what cannot be stored --------------------------------------------------------------------------


def _check(name: str, value: Any) -> None:
    obstacle = _obstacle(value)
    if name == METADATA or not (name.isascii() or name == name.encode(errors="ignore").decode()):
        obstacle = "a name that no header can hold", "rename the module"
    if obstacle:
        found, fix = obstacle
        expected = "a dense tensor with values"
        raise KindError(f"{shown(name)} cannot be saved.", found=found, expected=expected, fix=fix)


def _obstacle(value: Any) -> tuple[str, str] | None:
    """Return why a value cannot be stored, and the way out; None where it can be."""
    by_torch = "torch.save(model.state_dict(), 'model.pt')"
    if not isinstance(value, Tensor):
        fix = "return a tensor from get_extra_state, which is stored as any other; or keep it elsewhere"
        return f"{type(value).__name__}, not a tensor", fix
    if is_lazy(value):
        return "a parameter of a lazy module, without a shape", "run one forward through the model first"
    if value.is_meta:
        return "a tensor on the meta device, without values", "load the model first"
    if _is_wrapper(value):
        return f"a {type(value).__name__}, which has a format of its own", by_torch
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}", "make it dense first: tensor.to_dense()"
    if dtype_name(value.dtype) is None:
        return f"{value.dtype}, which safetensors does not know", by_torch
    return None


def _is_wrapper(tensor: Tensor) -> bool:
    """Tell whether a tensor only looks like one: what it holds lies in tensors inside."""
    kind: Any = type(tensor)
    return kind.__torch_dispatch__ is not _PLAIN.__torch_dispatch__ and not is_sharded(tensor)


_PLAIN: Any = Tensor


def _whole(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Gather sharded tensors; tell whether this process is the one that writes."""
    if not any(map(is_sharded, tensors.values())):
        return tensors, True
    return {name: gathered(tensor) for name, tensor in tensors.items()}, is_first_process()
