"""Sharing that lives in a forward: modules called several times, Parameters used at several places.

Owns: the groups that a traced forward shows, and the findings TIE111 and TIE112. Must not run anything. Read next:
`check.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from tied.checking.forward_trace import Seen, Use, key
from tied.checking.groups import name_of
from tied.checking.inventory import Inventory
from tied.checking.library_ties import tied_layers
from tied.memory import OVERLAP
from tied.memory.overlap import overlapping, shape_of, size_of
from tied.reporting.facts import Finding, Group, quoted, spelled
from tied.reporting.fold import above
from tied.reporting.rules import finding


def called(modules: Mapping[str, nn.Module], counted: Mapping[str, int]) -> Iterator[Group]:
    """Yield the outermost modules with parameters that are called more often than they stand in what holds them."""
    places = Counter(id(module) for module in modules.values()) if counted else {}
    for name, module in modules.items() if counted else ():
        times = counted.get(name, 0)
        if times <= places[id(module)] or not name or next(module.parameters(), None) is None:
            continue
        if max((counted.get(path, 0) for path in (*above(name), "")), default=1) >= times:
            continue
        yield _several(name, module, f"{times} calls")
    yield from (_several(name, layer, f"{n} layers") for name, layer, n in tied_layers(modules) if n > 1)


def _several(name: str, module: nn.Module, what: str) -> Group:
    distinct = list({id(parameter): parameter for parameter in module.parameters()}.values())
    dtypes = {name_of(parameter.dtype) for parameter in distinct}
    size = sum(map(size_of, distinct))
    return Group("called", (name,), (what,), (), dtypes.pop() if len(dtypes) == 1 else "", size)


# -- Parameters ---------------------------------------------------------------------------------------


def used(inventory: Inventory, seen: Seen) -> Iterator[Group]:
    """Yield the Parameters that a forward uses at several places, apart from those that their modules show."""
    for name, uses in _by_parameter(seen).items():
        places = _places(uses)
        tensor = inventory.tensor(name)
        if tensor is not None and sum(places.values()) > 1 and _is_news(places) and _overlap(uses):
            texts = tuple(_worded(inventory, use, times) for use, times in places.items())
            what = f"{sum(places.values())} uses"
            yield Group("called", (name,), (what,), shape_of(tensor), name_of(tensor.dtype), size_of(tensor), (), texts)


def _by_parameter(seen: Seen) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for use in seen.uses:
        found.setdefault(use.name, []).append(use)
    return found


def _places(uses: Sequence[Use]) -> dict[Use, int]:
    """Return the places of use, each by its first use, with how often one call of its module uses it there."""
    first: dict[tuple[object, ...], Use] = {}
    times = Counter[tuple[object, ...]]()
    for use in uses:
        first.setdefault((use.path, use.function, use.suffix), use)
        times[use.path, use.function, use.suffix, use.call] += 1
    return {use: max(n for each, n in times.items() if each[:-1] == place) for place, use in first.items()}


def _is_news(places: Mapping[Use, int]) -> bool:
    """Tell whether sharing is in the forward, not only in modules that hold the Parameter and use it once."""
    inside_one = len({use.path for use in places}) < len(places)
    return inside_one or any(not use.is_own or times > 1 for use, times in places.items())


def _overlap(uses: Sequence[Use]) -> bool:
    """Tell whether two uses have an entry of the Parameter in common."""
    views = [use.tensor for use in uses if use.suffix is not None]
    if len(views) < len(uses) or any(view.is_meta for view in views) or len({key(view) for view in views}) > 1:
        return len({use.suffix for use in uses}) < len(uses) or any(use.suffix in ("", ".T", None) for use in uses)
    return bool(overlapping(views))


def _worded(inventory: Inventory, use: Use, times: int) -> str:
    module = inventory.modules.get(use.path)
    kind = type(module).__name__
    often = f", {times} times" if times > 1 else ""
    if use.is_own and times == 1 and use.path:
        return f"{kind} '{use.path}'"
    where = f"{kind}.forward" + (f" of '{use.path}'" if use.path else "")
    of = {"": "", ".T": " with its transpose", OVERLAP: " with a part of it", None: " with what is computed from it"}
    return f"{use.function}{of.get(use.suffix, f' with {use.name}{use.suffix}')} in {where}{often}"


# -- findings -----------------------------------------------------------------------------------------


def look_at_forward(inventory: Inventory, seen: Seen) -> Iterator[Finding]:
    """Yield uses that train nothing, and Parameters that are overwritten with others."""
    targets = {copy.target for copy in seen.copies}
    for name, uses in _by_parameter(seen).items():
        trained = [use for use in uses if not use.is_cut]
        cut = [use for use in uses if use.is_cut and not _writes(targets, use)]
        if trained and cut:
            place = _worded(inventory, cut[0]._replace(is_own=False), 1)
            what = f"{name} gets no gradient from {place}: there it is detached, or a new Parameter."
            yield finding("TIE111", (name,), what)
    for copy in seen.copies:
        target, source = inventory.tensor(copy.target), f"{spelled(copy.source)}{copy.suffix or ''}"
        known = copy.suffix is not None and copy.suffix != OVERLAP
        what = f"{copy.target} is overwritten with {source if known else copy.source} in each forward: "
        what += "what it learns is lost, and the other does not learn from it."
        fix = f"tied.tie(model, {quoted(copy.target)}, {quoted(source)})" if known else ""
        frozen = target is not None and not target.requires_grad
        yield finding("TIE112", (copy.target, copy.source), what, fix, severity="note" if frozen else None)


def _writes(targets: set[str], use: Use) -> bool:
    """Tell whether a use stands in a module into which the Parameter was copied just before."""
    return any(target.rpartition(".")[0] == use.path for target in targets)
