"""Links: how one attribute of one module is computed from its sources at each access.

Owns: late reading. A source is found from the home (the innermost module that holds both ends) at each access, by its
owner's address and by its owner, and never by holding a Parameter; so it stays right when a source is replaced, moved,
loaded with `assign=True`, or becomes computed. Must not change modules. Read next: `late_reading.py`.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Address, Expression, Ref, invert, parse, show_address
from tied.algebra.expression import Apply
from tied.binding.computed_source import write_attribute
from tied.binding.followers.adapters import LIVING
from tied.binding.followers.parameter_marks import Marks
from tied.binding.module_reference import Anchor, anchor, plant
from tied.binding.source import Source, gone, not_frozen, path_to
from tied.binding.source_tensor import fetched, read_source
from tied.binding.target_tensor import Read, computing, derive, viewing
from tied.ledger import module_at
from tied.sharding import are_apart, gathered_for, is_sharded

View = Callable[[Tensor], Tensor]
Position = tuple[tuple[str, ...], Address, str, bool, Marks]


def _composed(views: Sequence[View]) -> View:
    return views[0] if len(views) == 1 else lambda tensor: functools.reduce(lambda t, view: view(t), views, tensor)


class Link:
    """What one tied attribute reads, and how.

    Attributes:
        expression: The definition, with addresses from the home.
        home: The anchor of the innermost module that holds both ends; None where the owners were given.
        target: Returns the module that reads; None before it is installed, and after its end.
        place: The address of the target from the home, where it was declared.
        order: The names of its module's parameters (or buffers) before anything was tied, for untying.
        kind: Where its module holds or held the attribute: `"_parameters"` or `"_buffers"`; "" where in neither.
        marks: What the target's Parameter was beside its values before it was tied, for untying.
        settled: Returns what stands in a state dict for a live target, whose source loads for both.
        waits: Whether it is an identity that is read late, until its source holds an ordinary tensor again.
        read: Computes the present value.
    """

    def __init__(self, expression: Expression, sources: Mapping[Address, Source], home: Anchor | None) -> None:
        """Make a link; call `connect` to be able to read."""
        self.expression, self.sources, self.home = expression, dict(sources), home
        self.target: Callable[[], nn.Module | None] = lambda: None
        self.place: Address = ()
        self.order: tuple[str, ...] = ()
        self.kept: dict[Address, Tensor] = {}
        self.kind, self.waits = "", False
        self.marks = Marks()
        self.settled: Callable[[], Tensor | None] | None = None
        self.read: Read = self._unread
        LIVING.add(self)

    @classmethod
    def between(cls, expression: Expression, home: nn.Module) -> Link:
        """Make and connect a link whose sources all lie inside `home`."""
        mark = anchor(home)
        link = cls(expression, {}, mark)
        for address in expression.sources():
            owner = module_at(home, address[:-1])
            assert owner is not None
            link.sources[address] = link.source(address, owner, anchor(owner))
        return link.connect()

    @classmethod
    def to(cls, expression: Expression, owners: Mapping[Address, nn.Module]) -> Link:
        """Make and connect a link to owner modules that are given."""
        sources = {address: Source(address, owner, anchor(owner)) for address, owner in owners.items()}
        return cls(expression, sources, None).connect()

    def _reader(self, source: Source) -> Read:
        """Return a function that finds and reads a source, and hands on what is no plain Parameter."""
        top = self.home.module if self.home is not None else None
        if top is None:
            return lambda: self.found(source.living(), source.name)
        reference, path, name, known = weakref.ref(top), source.path, source.name, source.reference

        def read() -> Tensor:
            nonlocal path, known
            home: Any = reference()
            if home is None:
                return self.found(source.living(), name)
            module = home
            for segment in path:
                module = module._modules.get(segment)
                if module is None:
                    break
            if module is None or module is not known():
                module = source.follow(home, module)
                path, known = source.path, source.reference
            tensor = module._parameters.get(name)
            return tensor if type(tensor) is Parameter else self.found(module, name)

        return read

    def _beside_others(self, source: Source) -> Read:
        """Return a reader of one of several sources, of which accelerate may keep some elsewhere, and others not."""
        read = self._reader(source)
        if len(self.sources) == 1:
            return read

        def here() -> Tensor:
            tensor = read()
            owner = source.look(self.home) if tensor.is_meta else None
            value = fetched(owner, source.name) if owner is not None else None
            return tensor if value is None else value

        return here

    def source(self, address: Address, owner: nn.Module | None, mark: Anchor) -> Source:
        """Make a source of this link; one that a home holds lives no longer than its model, unless it is the home."""
        return Source(address, owner, mark, keeps=self.home is None or len(address) == 1)

    def connect(self) -> Link:
        """Compile the expression with readers of the sources."""
        transforms = [node.transform for node in self.expression.nodes() if isinstance(node, Apply)]
        if all(transform.aliases for transform in transforms):
            (source,) = self.expression.sources()
            views = [transform.function() for transform in reversed(transforms)]
            reader = self._reader(self.sources[source])
            self.read = viewing(reader, _composed(views), self) if views else reader
        else:
            self.read = computing(
                self.expression.compile(lambda address: self._beside_others(self.sources[address])), self
            )
        self.kept = {}
        return self

    @property
    def can_connect(self) -> bool:
        """Tell whether the home, or every owner, is known."""
        if self.home is not None and self.home.module is not None:
            return True
        return all(source.owner is not None for source in self.sources.values())

    def tensors(self) -> dict[Address, Tensor]:
        """Read every source once, as it is."""
        return {address: read_source(source.find(self.home), address[-1]) for address, source in self.sources.items()}

    def found(self, owner: nn.Module | None, name: str) -> Tensor:
        """Return a source as the target reads it: whole where FSDP2 has sharded it, marked where it is computed."""
        tensor = read_source(owner, name)
        if is_sharded(tensor):
            home = self.home.module if self.home is not None else None
            return gathered_for(self.target(), tensor, home)
        if owner is None or name in owner._parameters or name in owner._buffers:
            return tensor
        return derive(tensor, self)

    def fetched(self) -> Tensor | None:
        """Return the value from where accelerate keeps sources between forwards of their modules; None if it does not.

        Its hook leaves Parameters on the meta device behind, and the values in a map, in memory or on a disk.
        """
        sources: dict[Address, Tensor] = {}
        for address, source in self.sources.items():
            owner = source.find(self.home)
            value = fetched(owner, address[-1]) if owner is not None else None
            if value is None:
                return None
            sources[address] = value
        return self.expression.value(sources)

    def fixed(self) -> set[Address]:
        """Return the sources that are buffers: constants of the map."""
        owners = {address: source.find(self.home) for address, source in self.sources.items()}
        return {address for address, owner in owners.items() if owner is not None and address[-1] in owner._buffers}

    def write(self, value: Tensor) -> None:
        """Give the sources the values, nearest to the present ones, that make `value` of the target.

        Raises:
            InverseError: no source gives `value`; nothing was written.
        """
        with torch.no_grad():
            for address, tensor in invert(self.expression, value, self.tensors(), self.fixed()).items():
                owner = self.sources[address].find(self.home)
                assert owner is not None
                write_attribute(owner, address[-1], tensor)

    def require_grad(self, requires_grad: bool) -> None:
        """Freeze or thaw the sources that are Parameters; buffers stay as they are.

        Raises:
            KindError: a source is computed, so that there is nothing here to freeze; nothing was changed.
        """
        owners = {address: source.find(self.home) for address, source in self.sources.items()}
        places = {address: owner for address, owner in owners.items() if owner and address[-1] not in owner._buffers}
        parameters = [owner._parameters.get(address[-1]) for address, owner in places.items()]
        for address, parameter in zip(places, parameters, strict=True):
            if parameter is None and self.tensors()[address].requires_grad != requires_grad:
                raise not_frozen(address, requires_grad)
        for parameter in parameters:
            if parameter is not None:
                parameter.requires_grad_(requires_grad)

    def gradient(self) -> Tensor | None:
        """Return the gradients of the sources, seen as the target sees their values; None where there is none."""
        gradients = {address: tensor.grad for address, tensor in self.tensors().items()}
        found = {address: gradient for address, gradient in gradients.items() if gradient is not None}
        return self.expression.value(found) if len(found) == len(gradients) else None

    def remember(self) -> None:
        """Have the home remember the declaration, for `retie`."""
        home = self.home.module if self.home is not None else None
        if home is not None:
            plant(home).declared[show_address(self.place)] = str(self.expression)

    def forget(self) -> None:
        """Have the home forget the declaration."""
        home = self.home.module if self.home is not None else None
        if home is not None:
            plant(home).declared.pop(show_address(self.place), None)

    # -- identities ---------------------------------------------------------------------------------

    @property
    def is_identity(self) -> bool:
        """Whether the target is its source, as it is."""
        return isinstance(self.expression, Ref) and len(self.sources) == 1

    @property
    def is_live(self) -> bool:
        """Whether the target's slot is the source's, so that nothing is read late."""
        return self.is_identity and bool(self.kind) and not self.waits

    @property
    def identity_name(self) -> str:
        """The attribute of the one source of an identity."""
        (address,) = self.sources
        return address[-1]

    def identity_owner(self) -> nn.Module | None:
        """Return the module that owns the one source of an identity now; None where it left."""
        (source,) = self.sources.values()
        owner = source.look(self.home)
        source.has_left |= owner is None and self.is_live and self.can_connect
        return owner

    def is_hidden(self) -> bool:
        """Tell whether the one source of an identity is in the model, and cannot be read as it is."""
        home, (source,) = self.home.module if self.home is not None else None, self.sources.values()
        return home is not None and source.owner is not None and path_to(home, source.owner) is not None

    def is_apart(self) -> bool:
        """Tell whether FSDP2 shards, or is about to shard, the target and the one source of an identity apart."""
        (source,) = self.sources.values()
        return are_apart(self.home.module if self.home is not None else None, self.place, source.path)

    def _unread(self) -> Tensor:
        raise gone(self.expression.sources()[0], "a copy was made without the module that holds it")

    # -- copies -------------------------------------------------------------------------------------

    @property
    def slot(self) -> Position:
        """What a copy is told of the place of the target."""
        return self.order, self.place, self.kind, self.waits, self.marks

    @slot.setter
    def slot(self, slot: Position) -> None:
        self.order, self.place, self.kind, self.waits, self.marks = slot

    def when_found(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever the copy of the home or of an owner turns up."""

        def remember(source: Source) -> None:
            source.owner = source.mark.module
            tell()

        if self.home is not None:
            self.home.when_filled(tell)
        for source in self.sources.values():
            source.mark.when_filled(lambda source=source: remember(source))

    def again(self) -> Link:
        """Return a link that reads the same, for another module."""
        twin = Link(self.expression, {}, self.home)
        twin.slot, twin.kept = self.slot, self.kept
        twin.sources = {a: twin.source(one.address, one.owner, one.mark) for a, one in self.sources.items()}
        return twin.connect() if twin.can_connect else twin

    def refreshed(self) -> dict[Address, Source]:
        """Return the sources as they are now: a replaced owner gets an anchor before it is copied."""
        found: dict[Address, Source] = {}
        for address, source in self.sources.items():
            owner = source.look(self.home) if self.is_live else source.find(self.home)
            found[address] = source if owner is None else self.source(source.address, owner, anchor(owner))
        return found

    def _has_left(self) -> bool:
        """Tell whether the source of a live target left the model, so that it does not lead into a copy either."""
        return self.is_live and self.can_connect and self.identity_owner() is None

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        """Point into the copy, as far as it is known by now; else remember the present value."""
        twin = Link(self.expression, {}, copy.deepcopy(self.home, memo))
        memo[id(self)] = twin
        twin.slot = self.slot
        if (copied := memo.get(id(self.target()))) is not None:
            twin.target = weakref.ref(copied)
        for address, source in self.refreshed().items():
            mark = copy.deepcopy(source.mark, memo)
            twin.sources[address] = twin.source(source.address, memo.get(id(source.owner)), mark)
            if self._has_left():
                twin.sources[address].leave()
        if twin.can_connect:
            return twin.connect()
        if self.is_live:  # the slot has the value
            return twin
        twin.kept = {address: tensor.detach().clone() for address, tensor in self.tensors().items()}
        for address, tensor in self.tensors().items():
            twin.kept[address].requires_grad_(tensor.requires_grad)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the source tensors themselves: the file holds each of them once."""
        tensors = {} if self.is_live else {a: t if t.is_leaf else t.detach() for a, t in self.tensors().items()}
        target = self.target() if self.is_live else None
        left = self._has_left()
        marks = {a: (source.address, None if left else source.mark) for a, source in self.refreshed().items()}
        return _unpickled, (str(self.expression), marks, self.home, self.slot, tensors, target)

    def own_value(self) -> Tensor:
        """Return the value from the tensors kept by a copy that does not hold the sources."""
        return self.expression.value(self.kept)


def _unpickled(
    text: str,
    marks: dict[Address, tuple[Address, Anchor | None]],
    home: Anchor | None,
    slot: Any,
    tensors: dict[Address, Tensor],
    target: nn.Module | None = None,
) -> Link:
    link = Link(parse(text), {}, home)
    for address, (place, mark) in marks.items():
        link.sources[address] = link.source(place, mark.module if mark is not None else None, mark or Anchor())
        if mark is None:
            link.sources[address].leave()
    link.slot, link.kept = slot if len(slot) == 5 else (*slot, "", False, Marks()), tensors  # written by 0.1.0
    if target is not None:
        link.target = weakref.ref(target)
    return link.connect() if link.can_connect else link
