"""Live slots: a tied entry of a module's `_parameters` or `_buffers` is what the slot of its source holds now.

Owns: identity ties whose source holds an ordinary tensor. Every tool sees what plain sharing shows it, one tensor in
two slots; and nothing is ever stale, because nothing is kept. Where the source holds no such tensor (a norm computes
it, FSDP2 has sharded it apart), the slot is given up to late reading. Must not know how a source is found.
Read next: `binding/late_reading.py`.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from tied.binding.link import Link
from tied.binding.live.parted import PARTED, tell
from tied.binding.live.states import Verdict, judge
from tied.binding.refusals import not_deleted, on_meta, two_values
from tied.sharding import is_managed, is_sharded

Kind = Literal["_parameters", "_buffers"]
Late = Callable[[nn.Module, str, Link], None]


def _slot_reader(link: Link, kind: Kind) -> Callable[[], Tensor | None]:
    """Return a function that returns what the slot of a link's source holds; None where anything has changed."""
    top = link.home.module if link.home is not None else None
    (source,) = link.sources.values()
    path, name, known = source.path if top is not None else (), source.name, source.reference
    reference = weakref.ref(top) if top is not None else known
    is_parameter = kind == "_parameters"

    def read() -> Tensor | None:
        try:
            module: Any = reference()
            for segment in path:
                module = module._modules[segment]
            slots = module._parameters if is_parameter else module._buffers
            if module is known() and (type(slots) is dict or name not in slots.links):
                return slots[name]
        except (AttributeError, KeyError):  # something is not where it was
            pass
        return None

    return read


def _irregular() -> None:
    """Stand for the source of a slot that has to be judged at its next read."""


_MARKS = ("_foreign", "_following", "_sharded", "_skipped")


class Live(dict[str, Tensor | None]):
    """The `_parameters` or `_buffers` of a module, in which tied entries are what their sources are now.

    What is written to a tied entry directly, as tools do, is judged when it is read next. An ordinary dict comes out
    of `copy()`, so that a module made anew over a copied `__dict__` has ordinary tensors.

    Attributes:
        links: The links of the tied entries.
    """

    __slots__ = ("_following", "_foreign", "_kind", "_late", "_left", "_now", "_sharded", "_skipped", "links")

    def __init__(self, kind: Kind, late: Late, entries: Iterable[tuple[str, Tensor | None]] = ()) -> None:
        """Hold `entries`, none of which is tied yet; `late` takes an entry over whose source is no ordinary tensor."""
        super().__init__(entries)
        self._kind: Kind = kind
        self._late = late
        self.links: dict[str, Link] = {}
        self._now: dict[str, Callable[[], Tensor | None]] = {}  # what to compare with, to read fast
        self._foreign: set[str] = set()
        self._left: dict[str, Tensor | None] = {}  # what an entry held before it followed its source
        self._sharded: set[str] = set()  # by FSDP2, together with their sources
        self._following: set[str] = set()  # converted with their sources, whatever those become
        self._skipped: set[str] = set()  # on the meta device when their module was given memory

    def with_tie(self, name: str, link: Link, tensor: Tensor) -> Live:
        """Return the same entries, one of which is tied and holds `tensor`."""
        twin = self.remade({**dict(dict.items(self)), name: tensor})
        twin.links[name] = link
        twin._now[name] = _slot_reader(link, self._kind)
        return twin

    def without(self, name: str, tensor: Tensor | None = None) -> dict[str, Tensor | None]:
        """Return the entries, one of which is tied no longer: it holds `tensor`, or is not there any more."""
        entries = {key: tensor if key == name else value for key, value in dict.items(self)}
        if tensor is None:
            del entries[name]
        twin = self.remade(entries)
        twin._forget(name)
        return twin if twin.links else entries

    def remade(self, entries: Mapping[str, Tensor | None]) -> Live:
        """Return other entries, of which the same are tied."""
        twin = Live(self._kind, self._late, entries.items())
        twin.links, twin._now, twin._left = {**self.links}, {**self._now}, {**self._left}
        for marks in _MARKS:
            getattr(twin, marks).update(getattr(self, marks))
        return twin

    def _forget(self, name: str) -> None:
        for known in (self.links, self._now, self._left):
            known.pop(name, None)  # type: ignore[attr-defined]
        for marks in _MARKS:
            getattr(self, marks).discard(name)

    # -- judging ------------------------------------------------------------------------------------

    def verdict(self, name: str, seen: frozenset[int] = frozenset()) -> tuple[Verdict, Tensor | None]:
        """Return what a tied entry is, and what its source's slot holds; puts nothing into any slot."""
        link, held = self.links[name], dict.get(self, name)
        owner = link.identity_owner()
        if owner is None or held is None:  # the source left: the weight lives on here, as in plain torch
            return Verdict.LATE if link.is_hidden() else Verdict.OWN, None
        source = self._source(owner, link.identity_name, seen | {id(self)})
        if name in self._following and source is not None and not is_sharded(source):
            return Verdict.HOLDS if held is source else Verdict.FOLLOWS, source
        return judge(held, source, is_foreign=name in self._foreign), source

    def _source(self, owner: nn.Module, name: str, seen: frozenset[int]) -> Tensor | None:
        """Return what a slot holds; a target may stand in the place of a source, even of its own."""
        slots = owner.__dict__[self._kind]
        if not isinstance(slots, Live) or name not in slots.links or id(slots) in seen:
            return dict.get(slots, name)
        verdict, source = slots.verdict(name, seen)
        return dict.get(slots, name) if verdict in (Verdict.OWN, Verdict.SPLIT) else source

    def is_in_accord(self, name: str) -> bool:
        """Tell whether a tied entry is what its source is; puts its slot in order."""
        self._settled(name, is_read=False)
        return name in self.links and self.verdict(name)[0] is Verdict.HOLDS

    def is_split(self, name: str) -> bool:
        """Tell whether a tied entry was given a value of its own."""
        return self.verdict(name)[0] is Verdict.SPLIT

    def _settled(self, name: str, *, is_read: bool) -> Tensor | None:
        """Return what a tied entry is now, and put its slot in order; None where it was handed to late reading."""
        verdict, source = self.verdict(name)
        held, link = dict.get(self, name), self.links[name]
        if is_dynamo_compiling():
            late = verdict is Verdict.LATE
            return link.read() if late else held if verdict in (Verdict.OWN, Verdict.SPLIT) else source
        if verdict is Verdict.LATE or (verdict is Verdict.HOLDS and not is_read and self._is_taken_apart(name)):
            return self._given_up(name, is_read=is_read)
        if verdict is Verdict.HOLDS:
            self._in_accord(name)
        elif verdict is Verdict.FOLLOWS:
            self._follow(name, source)
        elif verdict is Verdict.SPLIT and is_read:
            raise two_values(link)
        found = source if verdict in (Verdict.FOLLOWS, Verdict.PEEKS) else held
        if is_read and found is not None and found.is_meta and name in self._skipped:
            self._refuse_alone(name)
        return found

    def _is_taken_apart(self, name: str) -> bool:
        """Tell whether FSDP is about to shard an entry apart from its source, or to flatten it."""
        link = self.links[name]
        return link.is_apart() or (name not in self._sharded and is_managed(link.target()))

    def _follow(self, name: str, source: Tensor | None) -> None:
        self._left[name] = dict.get(self, name)
        self._foreign.discard(name)
        self._following.discard(name)
        self._now[name] = _irregular
        dict.__setitem__(self, name, source)

    def _in_accord(self, name: str) -> None:
        held = dict.get(self, name)
        self._foreign.discard(name)
        self._following.discard(name)
        self._left.pop(name, None)
        if held is not None and not held.is_meta:
            self._skipped.discard(name)
        if name not in self._skipped:
            self._now[name] = _slot_reader(self.links[name], self._kind)

    def _given_up(self, name: str, *, is_read: bool) -> Tensor | None:
        """Hand an entry over to late reading."""
        link, module = self.links[name], self.links[name].target()
        if module is not None and module.__dict__.get(self._kind) is self:  # and no clone of it
            self._late(module, name, link)
            dict.pop(self, name)
            self._forget(name)
            if not self.links:
                module.__dict__[self._kind] = dict(dict.items(self))
        return link.read() if is_read else None

    def _refuse_alone(self, name: str) -> None:
        """Refuse to read from the meta device what was skipped when its module was given memory."""
        own = [tensor for key, tensor in dict.items(self) if tensor is not None and key not in self.links]
        module = self.links[name].target()
        if module is not None and own and not all(tensor.is_meta for tensor in own):
            raise on_meta(module, name, self.links[name])

    # -- reading ------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor | None:
        """Return an entry; a tied one as its source's slot holds it now.

        Raises:
            ConflictError: it was given a value of its own that differs from its source's.
        """
        held = dict.__getitem__(self, name)
        now = self._now
        if name in now and now[name]() is not held:
            return self._settled(name, is_read=True)
        return held

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry, or `default`."""
        return self[name] if name in self else default  # noqa: SIM401

    def _listed(self) -> list[tuple[str, Tensor | None]]:
        known = {name: self._shown(name) for name in tuple(self.links)}
        return [(name, known.get(name, held)) for name, held in dict.items(self)]

    def _shown(self, name: str) -> Tensor | None:
        held = dict.get(self, name)
        if not is_dynamo_compiling() and self._now[name]() is held and not self._is_taken_apart(name):
            return held
        return self._settled(name, is_read=False)

    def items(self) -> Any:
        """Return all entries with their names; without the tied ones where their module is being converted."""
        listed = self._listed()
        if is_dynamo_compiling() or not self._is_converted():
            for link in tuple(self.links.values())[:1] if PARTED else ():
                tell(link.target())
            return listed
        own = self._own_names()
        return [(name, tensor) for name, tensor in listed if name in own]

    def values(self) -> Any:
        """Return all entries."""
        return [tensor for _, tensor in self._listed()]

    def keys(self) -> Any:
        """Return the names of all entries."""
        return [name for name, _ in self._listed()]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all entries."""
        return iter(self.keys())

    def copy(self) -> dict[str, Tensor | None]:
        """Return an ordinary dict of what the entries are now."""
        return dict(self._listed())

    __copy__ = copy

    @staticmethod
    def _is_converted() -> bool:
        """Tell whether `nn.Module._apply` asks, to convert each entry it is shown: a source converts for all.

        There is no hook on it, and an `_apply` of the instance would convert the original of a clone.
        """
        return sys._getframe(2).f_code is nn.Module._apply.__code__

    def _own_names(self) -> set[str]:
        """Return the names of the entries that their module has to convert itself."""
        names = set(dict.keys(self))
        for name in self.links:
            (verdict, source), held = self.verdict(name), dict.get(self, name)
            is_moved = verdict is Verdict.OWN and source is not None and name not in self._foreign  # its source, by now
            if is_moved or verdict in (Verdict.HOLDS, Verdict.FOLLOWS):
                names.discard(name)
                self._following.add(name)
                self._now[name] = _irregular
                if held is not None and held.is_meta:
                    self._skipped.add(name)
        return names

    # -- writing ------------------------------------------------------------------------------------

    def __setitem__(self, name: str, value: Tensor | None) -> None:
        """Put a tensor there; a tied entry is judged when it is read next.

        Raises:
            WriteError: None takes the place of a tied entry.
        """
        if name not in self.links or is_dynamo_compiling():
            dict.__setitem__(self, name, value)
        elif value is None:
            raise not_deleted(self.links[name], name)
        elif value is not dict.get(self, name) and value is not self._left.get(name):
            self._now[name] = _irregular
            dict.__setitem__(self, name, value)
            self._foreign.add(name)
            self._following.discard(name)
            if is_sharded(value):
                self._sharded.add(name)
            if self.verdict(name)[0] is Verdict.HOLDS:  # its source's, put back
                self._foreign.discard(name)

    def __delitem__(self, name: str) -> None:
        """Take away an entry.

        Raises:
            WriteError: it is tied.
        """
        if name in self.links:
            raise not_deleted(self.links[name], name)
        dict.__delitem__(self, name)

    def pop(self, name: str, *default: Any) -> Any:
        """Take away an entry, and return it; refuse where it is tied."""
        if name in self.links:
            raise not_deleted(self.links[name], name)
        return dict.pop(self, name, *default)

    def popitem(self) -> tuple[str, Tensor | None]:
        """Take away the last entry, and return it; refuse where it is tied."""
        name = next(reversed(self))
        return name, self.pop(name)

    def clear(self) -> None:
        """Take away all entries; refuse where one is tied."""
        for name in tuple(dict.keys(self)):
            del self[name]

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return an entry; put `default` there where there is none."""
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *others: Any, **named: Any) -> None:
        """Put tensors there."""
        for name, value in dict(*others, **named).items():
            self[name] = value

    def __ior__(self, other: Any) -> Live:  # type: ignore[override, misc]
        """Put tensors there."""
        self.update(other)
        return self

    # -- copies -------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        """Copy the tensors, and point the links into the copy of the model."""
        entries = self.copy()
        twin = Live(self._kind, self._late)
        memo[id(self)] = twin
        for name, tensor in entries.items():
            dict.__setitem__(twin, name, copy.deepcopy(tensor, memo))
        twin._take([(name, copy.deepcopy(link, memo)) for name, link in self.links.items()], self._foreign)
        return twin

    def _take(self, held: Iterable[tuple[str, Link]], foreign: Iterable[str]) -> None:
        self.links = dict(held)
        self._now = dict.fromkeys(self.links, _irregular)
        self._foreign = set(foreign) & self.links.keys()

    def __reduce__(self) -> Any:
        """Pickle the tensors as they are read now, and the links."""
        entries = self.copy()
        return Live, (self._kind, self._late), (self.links, self._foreign), None, iter(entries.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle so in every protocol."""
        return self.__reduce__()

    def __setstate__(self, state: tuple[dict[str, Link], set[str]]) -> None:
        """Take the links."""
        self._take(state[0].items(), state[1])


def live_names(module: nn.Module) -> list[str]:
    """Return the names of a module's live entries."""
    return [name for kind in ("_parameters", "_buffers") for name in getattr(module.__dict__[kind], "links", ())]


def live_slots(module: nn.Module, name: str) -> Live | None:
    """Return the slots in which an attribute of a module is live; None where it is not."""
    places = (module.__dict__["_parameters"], module.__dict__["_buffers"])
    return next((slots for slots in places if isinstance(slots, Live) and name in slots.links), None)
