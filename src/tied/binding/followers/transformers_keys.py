"""What a model of transformers says is tied, kept in step with its ties.

Owns: `_tied_weights_keys`, `all_tied_weights_keys` and the switch in the configuration, so that `save_pretrained`
stores once what `state_dict()` names twice, and what was untied is not tied again. Must not import transformers: its
models are known by what they have. Read next: `binding/tie.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from tied.algebra import Address, Ref
from tied.binding.commit.transaction import Transaction
from tied.ledger import Tie

KEYS, EXPANDED, SWITCH = "_tied_weights_keys", "all_tied_weights_keys", "tie_word_embeddings"


def enter(model: nn.Module, tie: Tie) -> None:
    """Have the innermost model of transformers around both ends of a tie know it; one that knows it stays as it is."""
    for module, target, source in [*_holders(model, tie)][-1:]:
        keys, expanded = getattr(module, KEYS), getattr(module, EXPANDED, None)
        known = {**(keys if isinstance(keys, dict) else {}), **(expanded or {})}
        if known.get(target) != source and known.get(source) != target:
            setattr(module, KEYS, [*keys, target] if isinstance(keys, list) else {**(keys or {}), target: source})
            if isinstance(expanded, dict):
                setattr(module, EXPANDED, {**expanded, target: source})


def withdraw(model: nn.Module, tie: Tie) -> None:
    """Take back what `enter` did."""
    for module, target, source in [*_holders(model, tie)][-1:]:
        of_class = getattr(type(module), KEYS, None) or ()
        if target not in of_class and target in (module.__dict__.get(KEYS) or ()):
            _forget(module, {(target, source)})


def leave(model: nn.Module, undone: Iterable[Tie], undo: Transaction) -> str:
    """Have all models of transformers around ties forget them; where nothing is left to tie, the configuration says so.

    transformers has one switch for all that a class ties. Where only some of it was untied, the switch stays on: then
    `save_pretrained` stores both weights, and `from_pretrained` keeps them apart once they differ.

    Returns:
        What has to be said of that; empty where it is not so.
    """
    still = list[str]()
    for tie in undone:
        for module, target, source in _holders(model, tie):
            was_tied = (target, source) in (getattr(module, EXPANDED, None) or {}).items()
            _forget(module, {(target, source), (source, target)})
            left, switch = getattr(module, EXPANDED, None), getattr(module.config, SWITCH, False)
            if left == {} and getattr(type(module), KEYS, None) and switch:
                undo.callback(setattr, module.config, SWITCH, True)
                setattr(module.config, SWITCH, False)
            elif left and was_tied and switch and _is_declared(module, target):
                still.append(f"{type(module).__name__}'s {target}")
    return _tied_again(still) if still else ""


def _is_declared(module: Any, target: str) -> bool:
    return any(re.search(pattern, target) for pattern in getattr(type(module), KEYS, None) or ())


def _tied_again(names: Sequence[str]) -> str:
    return (
        f"transformers ties {', '.join(names)} again when a model that was saved with equal values is loaded: {SWITCH} "
        "is one switch for everything that the class ties, and it stays on for the rest. What differs from its source "
        "when it is saved stays apart."
    )


def _forget(module: Any, pairs: set[tuple[str, str]]) -> None:
    keys, expanded = getattr(module, KEYS), getattr(module, EXPANDED, None)
    if isinstance(expanded, dict) and pairs & expanded.items():
        left = {key: value for key, value in expanded.items() if (key, value) not in pairs}
        setattr(module, EXPANDED, left)
        setattr(module, KEYS, left)  # written out: no pattern says "all of these but one"
    elif isinstance(keys, list):
        setattr(module, KEYS, [key for key in keys if key not in {target for target, _ in pairs}])
    elif isinstance(keys, dict) and pairs & keys.items():
        setattr(module, KEYS, {key: value for key, value in keys.items() if (key, value) not in pairs})


def entered(model: nn.Module) -> set[str]:
    """Return the names of the targets that were entered here, which a new model of the configuration does not tie."""
    found: set[str] = set()
    for path, module in model.named_modules():
        own, of_class = module.__dict__.get(KEYS) or (), getattr(type(module), KEYS, None) or ()
        found |= {f"{path}.{name}" if path else name for name in own if name not in of_class}
    return found


def _holders(model: nn.Module, tie: Tie) -> Iterator[tuple[Any, str, str]]:
    """Yield the models of transformers around both ends of an identity, from outside, with their names in each."""
    step: nn.Module | None = model
    source = tie.source.address if isinstance(tie.source, Ref) else ()
    for depth, (one, other) in enumerate(zip(tie.address, source, strict=False)):
        if step is not None and hasattr(step, KEYS) and hasattr(step, "config"):
            yield step, _name(tie.address[depth:]), _name(source[depth:])
        step = step._modules.get(one) if step is not None and one == other else None


def _name(address: Address) -> str:
    return ".".join(address)
