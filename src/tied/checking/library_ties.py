"""Declared: what other libraries' configurations say is shared, as pairs of names.

Owns: reading `_tied_weights_keys` and `tie_word_embeddings` of transformers (both forms, nested models too), the
hooks of accelerate, and DeepSpeed's tied layers; by their attributes, so that none of them is needed. Must not
judge: `declarations.py` compares the pairs with what is there.

A dict of transformers, `{target: source}`, may hold regular expressions and names of modules; a later rule may give
another source to a target of an earlier one. In the older form, a list of names, the source is the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import cycle
from typing import Any, NamedTuple

from torch import nn


class Pair(NamedTuple):
    """One declared tie: two names of the model, the class that says so, and its path."""

    target: str
    source: str
    origin: str
    path: str


class Undone(NamedTuple):
    """A rule that matches, and is undone by a later one: its pattern, and the pairs that it asked for."""

    rule: str
    source: str
    pairs: tuple[tuple[str, str], ...]


_KEYS = "_tied_weights_keys"
Modules = nn.Module | Mapping[str, nn.Module]  # a model, or what is in it by paths, where that is known already


def transformers_models(model: Modules) -> Iterator[tuple[str, Any]]:
    """Yield the models of transformers inside `model`, with the prefix of their names."""
    modules = model if isinstance(model, Mapping) else dict(model.named_modules())
    classes = {each for each in set(map(type, modules.values())) if hasattr(each, _KEYS)}
    for path, module in modules.items():
        if (_KEYS in module.__dict__ or type(module) in classes) and hasattr(module, "config"):
            yield f"{path}." if path else "", module


def pairs(model: Modules, names: Collection[str]) -> Iterator[Pair]:
    """Yield every declared tie of a model whose tensors have these names."""
    for prefix, module in transformers_models(model):
        if not is_configured(module):
            continue  # what it tied when it was made holds no more: its own `tie_weights` asks anew
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        known = getattr(module, "all_tied_weights_keys", None)
        for target, source in (rules(module, inside) | (dict(known) if isinstance(known, Mapping) else {})).items():
            yield Pair(f"{prefix}{target}", f"{prefix}{source}", type(module).__name__, prefix.removesuffix("."))


def is_configured(module: Any) -> bool:
    """Tell whether the configuration of a model of transformers asks for ties now."""
    return bool(getattr(module.config, "tie_word_embeddings", False))


def rules(module: Any, names: list[str]) -> dict[str, str]:
    """Return the pairs that one model of transformers ties if its configuration asks for it."""
    keys = module._tied_weights_keys
    if isinstance(keys, Mapping):
        return expand(keys, names)
    return dict(_of_list(module, keys, names)) if keys else {}


def expand(keys: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return the pairs that rules give, the later rule winning, as transformers 5 expands them."""
    expanded: dict[str, str] = {}
    for target, source in keys.items():
        for one, other in matches(target, source, names):
            expanded[one] = expanded.get(other, other)
    return {target: source for target, source in expanded.items() if target != source}


def matches(target: str, source: str, names: Collection[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that one rule matches, sources repeated in turn; none where the rule fits nothing."""
    found = [sorted(name for name in names if re.search(f"^{pattern}", name)) for pattern in (target, source)]
    if target in names and source in names:
        found = [[target], [source]]
    if not found[0] or not found[1] or len(found[0]) % len(found[1]):
        return []
    return list(zip(found[0], cycle(found[1]), strict=False))


def undone(module: Any, names: Collection[str]) -> Iterator[Undone]:
    """Yield the rules of one model of transformers that match, and of which later rules leave nothing."""
    keys = module._tied_weights_keys
    if not isinstance(keys, Mapping) or not is_configured(module):
        return
    final = expand(keys, names)
    root = {name: final.get(name, name) for name in names}
    for target, source in keys.items():
        asked = matches(target, source, names)
        if asked and all(root[one] != root[other] for one, other in asked):
            yield Undone(target, source, tuple(asked))


def _of_list(module: Any, keys: Collection[str], names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of the older form: weights go with the input embedding, biases with that of the parent."""
    embedding = _embedding(module)
    for name in names:
        if not any(re.search(key, name) for key in keys):
            continue
        owner, _, kind = name.rpartition(".")
        if kind == "bias":
            source = f"{owner.rpartition('.')[0]}.bias"
            if source in names:
                yield name, source
        elif embedding is not None:
            source = next((n for n in names if _owner(module, n) is embedding), None)
            if source not in (None, name) and _shape(module, name) == _shape(module, source):
                yield name, source


def _embedding(module: Any) -> Any:
    try:
        return module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _shape(module: nn.Module, name: str | None) -> Any:
    owner = None if name is None else _owner(module, name)
    return getattr(getattr(owner, (name or "").rpartition(".")[2], None), "shape", None)


def is_offloaded(owner: nn.Module) -> bool:
    """Tell whether accelerate keeps the weights of a module elsewhere, and puts them in place for each call."""
    hook = getattr(owner, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in (hook, *(getattr(hook, "hooks", ()) or ())))


def tied_layers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield DeepSpeed's tied layers of this stage: the name, the module, and how many layers it serves."""
    for path, module in modules.items():
        if "_layer_specs" not in module.__dict__:
            continue
        tied: Any = getattr(module, "tied_modules", None)
        if isinstance(tied, nn.ModuleDict):
            for key, layer in tied.items():
                layers = sum(getattr(spec, "key", None) == key for spec in module.__dict__["_layer_specs"])
                yield f"{path}.tied_modules.{key}".lstrip("."), layer, layers
