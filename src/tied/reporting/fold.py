"""Folding: whole modules that correspond name by name are one group, not one for each tensor.

Owns: `fold`, for models and files alike. Must not look at tensors: it reads names. Read next: `text.py`.

Law: modules are folded exactly if every tensor of each is the tensor of the same name in each other, in one state; the
outermost modules of which that holds are named. What is shared inside the first of them stays a group of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from tied.memory import IDENTITY
from tied.reporting.facts import Group, State

Paths = tuple[str, ...]
Judge = Callable[[State, Sequence[str]], State]


def fold(
    groups: Iterable[Group],
    names: Iterable[str],
    *,
    judge: Judge = lambda state, names: state,
    entire: Container[tuple[str, ...]] = (),
) -> tuple[Group, ...]:
    """Replace the groups of all tensors of modules by one group of the modules, with the former as `parts`.

    Args:
        groups: As found, tensor by tensor; those of modules are left as they are.
        names: Every name that must be shared for a module to be shared; others may be, as buffers.
        judge: Returns the state of some names of a group, whose own state is given.
        entire: The names of groups of which nothing may be taken out.

    Example:
        >>> pair = [Group("tied", (f"net.{n}", f"best.{n}"), ("identity", "identity"), (2,), "int8", 2) for n in "ab"]
        >>> (group,) = fold(pair, ["net.a", "net.b", "best.a", "best.b"])
        >>> group.names, group.bytes, len(group.parts)
        (('net', 'best'), 4, 2)
    """
    found, below, again = list(groups), Below(names), True
    while again:
        found, again = _Folding(found, below, judge, entire).folded()
    return tuple(found)


class Below:
    """How many names there are below each module."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    @cached_property
    def inside(self) -> dict[str, int]:
        """The number by module."""
        inside = Counter[str]()
        waiting = Counter([name.rpartition(".")[0] for name in self.names])
        while waiting:
            inside.update(waiting)
            outer = Counter[str]()
            for path, count in waiting.items():
                if "." in path:
                    outer[path.rpartition(".")[0]] += count
            waiting = outer
        return inside


def above(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a name, from the innermost outwards."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def paths(names: Sequence[str]) -> Iterator[Paths]:
    """Yield the modules that hold tensors under one name, from the innermost outwards.

    Example:
        >>> list(paths(["a.0.attention.weight", "b.0.attention.weight"]))
        [('a.0.attention', 'b.0.attention'), ('a.0', 'b.0'), ('a', 'b')]
    """
    owners = _owners(names)
    while owners:
        yield owners
        owners = _owners(owners)


def _owners(names: Sequence[str]) -> Paths:
    """Return the modules that hold some names, if these are one name in each; else nothing."""
    first = names[0]
    begin = first.rfind(".")
    end = first[begin:]
    if len(names) == 2:  # nearly all, so a short way
        other = names[1]
        return (first[:begin], other[: -len(end)]) if begin > 0 and other.endswith(end) and first != other else ()
    owners = tuple([name[: -len(end)] for name in names if name.endswith(end)]) if begin > 0 else ()
    return owners if len(owners) == len(names) == len({*owners}) else ()


def whole(modules: Paths, parts: Sequence[Group]) -> Group:
    """Return the group of modules that hold the groups `parts`."""
    dtypes = {part.dtype for part in parts}
    dtype, size = dtypes.pop() if len(dtypes) == 1 else "", sum([part.bytes for part in parts])
    return Group(parts[0].state, modules, (IDENTITY,) * len(modules), (), dtype, size, tuple(parts))


class _Folding:
    """One turn of folding."""

    def __init__(self, groups: list[Group], below: Below, judge: Judge, entire: Container[tuple[str, ...]]) -> None:
        self._groups, self._below, self._judge, self._entire = groups, below, judge, entire
        self._candidates: dict[tuple[State, Paths], list[int]] = {}
        self._inner: dict[str, list[str]] = {}  # by module: its names in groups of which it may have several
        self._where: dict[str, tuple[int, str]] = {}  # the group of such a name, and what it is of the first
        self._done, self._gone = set[int](), set[str]()
        self._cut, self._folded = set[int](), dict[int, list[Group]]()

    def folded(self) -> tuple[list[Group], bool]:
        """Return the groups, folded; and whether one of them was cut, so that what is left may fold again."""
        for index, group in enumerate(self._groups):
            if not group.parts and len(group.names) > 1:
                self._sort(index, group)
        self._climb()
        outermost: dict[int, list[tuple[int, tuple[State, Paths]]]] = {}
        for key, found in self._candidates.items():
            outermost.setdefault(key[1][0].count("."), []).append((found[0], key))
        for depth in sorted(outermost):
            for _, key in sorted(outermost[depth]):
                self._try(*key, self._candidates[key])
        if not self._folded:
            return self._groups, False
        return [new for index, group in enumerate(self._groups) for new in self._now(index, group)], bool(self._cut)

    def _sort(self, index: int, group: Group) -> None:
        owners = _owners(group.names) if group.transforms.count(IDENTITY) == len(group.names) else ()
        if owners:
            self._candidates.setdefault((group.state, owners), []).append(index)
        if len(group.names) > 3 and group.names not in self._entire:  # two at least in each of two modules
            for name, transform in zip(group.names, group.transforms, strict=True):
                self._where[name] = index, transform
                for path in above(name):
                    self._inner.setdefault(path, []).append(name)

    def _climb(self) -> None:
        """Make candidates of what holds the candidates."""
        waiting = self._candidates
        while waiting:
            outer: dict[tuple[State, Paths], list[int]] = {}
            for (state, modules), indices in waiting.items():
                if owners := _owners(modules):
                    outer.setdefault((state, owners), []).extend(indices)
            for key, indices in outer.items():
                self._candidates[key] = sorted({*self._candidates.get(key, ()), *indices})
            waiting = outer

    def _try(self, state: State, modules: Paths, indices: list[int]) -> None:
        """Fold modules, if every tensor of them is shared."""
        inside = self._below.inside
        wanted = inside.get(modules[0], 0)
        for path in modules:
            if inside.get(path, 0) != wanted:
                return
        used = self._done | self._cut if self._cut else self._done
        parts = {index: [self._groups[index]] for index in indices if index not in used}
        if len(parts) < wanted and not self._inner:
            return
        had = self._count(parts)
        if had < wanted:
            parts = self._with_several(state, modules, parts)
            had = self._count(parts)
        if had == wanted and (len(parts) > 1 or sum(map(len, parts.values())) > 1):
            self._replace(modules, parts, set(indices))

    def _count(self, parts: dict[int, list[Group]]) -> int:
        names = self._below.names
        return sum([part.names[0] in names for several in parts.values() for part in several])

    def _with_several(self, state: State, modules: Paths, parts: dict[int, list[Group]]) -> dict[int, list[Group]]:
        """Add what groups say of modules that have several of their names each."""
        parts, others = dict(parts), tuple(f"{path}." for path in modules[1:])
        for first in self._inner.get(modules[0], ()):
            index, transform = self._where[first]
            names = tuple([path + first[len(modules[0]) :] for path in modules])
            group = self._groups[index]
            is_known = index in parts and names in [part.names for part in parts[index]]
            fits = transform in (IDENTITY, ".T") and all(self._where.get(n) == (index, transform) for n in names)
            is_free = index not in self._done and not group.names[0].startswith(others) and self._gone.isdisjoint(names)
            if fits and is_free and not is_known and self._judge(group.state, names) == state:
                what, shape = (IDENTITY,) * len(names), group.shape if transform == IDENTITY else group.shape[::-1]
                part = replace(group, state=state, names=names, transforms=what, shape=shape)
                parts[index] = [*parts.get(index, ()), part]
        return parts

    def _replace(self, modules: Paths, parts: dict[int, list[Group]], complete: set[int]) -> None:
        """Put one group in the place of the first, and leave of the others what else they say."""
        indices = sorted(parts)
        folded = whole(modules, [group for index in indices for group in parts[index]])
        if self._where:  # names that are one memory inside of a module take it once
            folded = replace(folded, bytes=sum(parts[index][0].bytes for index in indices))
        self._folded.setdefault(indices[0], []).append(folded)
        for index in indices:
            if index in complete:
                self._done.add(index)
            else:
                self._cut.add(index)
                self._gone.update(name for part in parts[index] for name in part.names[1:])

    def _now(self, index: int, group: Group) -> list[Group]:
        """Return what stands in the place of a group: what was folded, and what it says besides."""
        new = self._folded.get(index, [])
        if index in self._done:
            return new
        if index not in self._cut:
            return [group]
        kept = [place for place, name in enumerate(group.names) if name not in self._gone]
        if len(kept) < 2:
            return new
        names = tuple([group.names[place] for place in kept])
        transforms = tuple([group.transforms[place] for place in kept])
        return [*new, replace(group, state=self._judge(group.state, names), names=names, transforms=transforms)]
