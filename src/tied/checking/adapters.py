"""Adapters: LoRA and trained copies (peft) on one end of what is shared.

Owns: the findings TIE411 and TIE412. Adapters are known by their names and attributes, so that peft is not needed.
Read next: `check.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tied.checking.declarations import Seen, at
from tied.reporting.facts import Finding, Group, quoted
from tied.reporting.rules import finding

BASE, ORIGINAL, TRAINED = ".base_layer.", ".original_module.", ".modules_to_save."

_WRAPPED = (BASE.rstrip("."), ORIGINAL.rstrip("."))


def look_at_adapters(seen: Seen) -> Iterator[Finding]:
    """Yield where an adapter sits on shared memory."""
    if not any(path.endswith(_WRAPPED) for path in seen.inventory.modules):
        return
    for group in seen.groups:
        adapted = [name for name in group.names if BASE in name and _has_adapter(seen, name)]
        others = [name for name in group.names if name not in adapted]
        if adapted:
            layer = adapted[0].partition(BASE)[0]
            end = others[0] if others else adapted[1]
            what = f"{layer} has an adapter, and its weight is shared with {end}: merging changes that too."
            yield finding("TIE411", group.names, what, _fix_of_adapter(seen, adapted[0]))
        yield from _trained_copy(seen, group)


def _fix_of_adapter(seen: Seen, name: str) -> str:
    """Return what gives the adapted end a weight of its own, which it may be merged into."""
    path, _, attribute = name.rpartition(".")
    if seen.inventory.is_target(name):
        return f"tied.untie(model, {quoted(name)})  # then merge"
    fix = f"import copy; m = model.get_submodule({quoted(path)}); m.{attribute} = copy.deepcopy(m.{attribute})"
    declared = next(
        (pair for pair in seen.declared if name in seen.present(pair.target) + seen.present(pair.source)), None
    )
    return f"{fix}; {at(declared.path)}.config.tie_word_embeddings = False" if declared else fix


def _has_adapter(seen: Seen, name: str) -> bool:
    layer = seen.inventory.modules[name.partition(BASE)[0]]
    places = (getattr(layer, kind, None) for kind in ("lora_A", "lora_embedding_A", "adapter_layer_names"))
    return any(place is not None and len(place) > 0 for place in places)


def _trained_copy(seen: Seen, group: Group) -> Iterator[Finding]:
    """Yield where one end has a trained copy that the other end does not share."""
    wrapped = [name for name in group.names if ORIGINAL in name]
    if not wrapped:
        return
    copies = [other for name in wrapped for other in _copies(seen, name)]
    ends = {name.partition(ORIGINAL)[0] for name in wrapped}
    if not copies or (len(ends) == len(group.names) and len({seen.memory[other] for other in copies}) == 1):
        return
    layer = wrapped[0].partition(ORIGINAL)[0]
    end = next((name for name in group.names if name not in wrapped), copies[-1])
    what = f"{layer} is trained as a copy of its own, while {end}, which shared its weight, stays as it was."
    fix = f"tied.tie(model, {quoted(end)}, {quoted(copies[0])})  # then build the optimizer anew"
    yield finding("TIE412", group.names, what, fix)


def _copies(seen: Seen, name: str) -> list[str]:
    layer, _, rest = name.partition(ORIGINAL)
    return [other for other in seen.memory if other.startswith(layer + TRAINED) and other.endswith(f".{rest}")]
