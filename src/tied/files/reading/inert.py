"""What a pickle names and nobody makes: its objects, kept as their class, their arguments and their state.

Owns: what lies in an object, under which name. Must not import what a file names, nor know torch.
Read next: `pickle_machine.py`, which makes these.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, cast

MOST_KEY = 100  # letters of a text in a key that is written out
MOST_PARTS = 9
_HASHED = (str, bytes, float, type(None))
MODULE = ("_parameters", "_buffers", "_modules")
_MAKERS = ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "_codecs.encode")
_NAMED = {
    "numpy.core.multiarray.scalar": "a numpy scalar",
    "numpy._core.multiarray.scalar": "a numpy scalar",
    "numpy.core.multiarray._reconstruct": "a numpy array",
    "numpy._core.multiarray._reconstruct": "a numpy array",
    "numpy._core.numeric._frombuffer": "a numpy array",
    "numpy.core.numeric._frombuffer": "a numpy array",
    "builtins.set": "a set",
    "builtins.frozenset": "a frozen set",
}


class Named:
    """A class or a function that a pickle names: the name, and nothing of the thing."""

    __slots__ = ("kind", "name")

    def __init__(self, name: str) -> None:
        self.name = self.kind = name


class External:
    """What lies outside the pickle: a storage, by what was said of it."""

    __slots__ = ("said", "source")

    def __init__(self, said: Any) -> None:
        self.said, self.source = said, cast(Any, None)


class Key:
    """A key whose hash could be chosen, or would take long: the same only as itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def key_text(key: Any) -> str:
    """Write a plain key, a short tuple or an object of plain values; the rest, and what is too long, not at all."""
    value: Any = key.value if isinstance(key, Key) else key
    if isinstance(value, Inert):
        return f"{value.kind}{key_text(value.args)}" if not isinstance(value, Rebuilt) else ""
    if isinstance(value, tuple):
        parts = cast(tuple[Any, ...], value)
        return str(parts) if len(parts) < MOST_PARTS and all(map(_is_short, parts)) else ""
    return str(value) if isinstance(value, int) or _is_short(value) else ""


def _is_short(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return len(value) < MOST_KEY
    return value is None or isinstance(value, float) or _is_small(value)


def _is_small(value: Any) -> bool:
    return isinstance(value, int) and -1 << 60 < value < 1 << 60


def key_of(value: Any) -> Any:
    """Return what stands for a key: hashing takes no longer than the key's own bytes, and cannot be made to collide.

    Python's hash of a text is salted. Those of whole numbers and tuples are not, and that of a tuple goes through all
    that lies in it, which a few bytes of a pickle can make without end.
    """
    return value if type(value) in _HASHED or _is_small(value) or isinstance(value, Inert | Named) else Key(value)


class Inert(Mapping[Any, Any]):
    """An object of a pickle that is not made.

    As a mapping it is what lies in it, by name: the attributes of its state, what it holds as a dict or a list, its
    arguments by their place. Of a whole module these are the entries of its state dict.

    Attributes:
        name: What was to be called, or whose instance it was: `argparse.Namespace`.
        args: With what.
        state: What its `__setstate__` would have got, or its `__dict__`.
        keyed: What it was given as a dict is.
        listed: What was appended to it.
    """

    __slots__ = ("args", "keyed", "listed", "name", "parts", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args, self.state = name, args, cast(Any, None)
        self.keyed: dict[Hashable, Any] | None = None
        self.listed: list[Any] | None = None
        self.parts: dict[Hashable, Any] | None = None

    @property
    def kind(self) -> str:
        """What it is, for people: its class, or a word for what is known."""
        first: Any = self.args[0] if self.args else None
        if self.name in _MAKERS and isinstance(first, Named):
            return first.name
        if self.name == "builtins.getattr" and len(self.args) == 2 and isinstance(first, Named):
            return f"{first.name}.{str(self.args[1])[:MOST_KEY]}" if isinstance(self.args[1], str) else first.name
        return _NAMED.get(self.name, self.name)

    def inner(self) -> dict[Hashable, Any]:
        """Return what lies in it, by name."""
        if self.parts is None:
            self.parts = {}
            for key, value in self._found():
                if self.parts.get(key) is not value:  # some objects are a dict, and have its entries as attributes
                    self.parts[Key(key) if key in self.parts else key] = value
        return self.parts

    def become(self, name: str, args: tuple[Any, ...]) -> None:
        """Turn into a tensor: the oldest files say only with its state what it is."""
        this: Any = self
        this.__class__ = Rebuilt
        this.name, this.args, this.state = name, args, None

    def _found(self) -> Iterator[tuple[Hashable, Any]]:
        states = cast(tuple[Any, ...], self.state) if isinstance(self.state, tuple) else (self.state,)
        attributes = [cast(dict[Any, Any], state) for state in states if isinstance(state, dict)]
        if len(attributes) == 1 and all(isinstance(attributes[0].get(key), Mapping) for key in MODULE):
            yield from _state_dict(attributes[0])
            return
        yield from enumerate(self.args)
        yield from enumerate(self.listed or (), len(self.args))
        yield from (self.keyed or {}).items()
        if len(attributes) < len(states) and states != (None,):
            yield "state", self.state  # of a shape of its own
            return
        for state in attributes:
            yield from state.items()

    def __getitem__(self, key: Any) -> Any:
        """Return what has a name."""
        return self.inner()[key]

    def __iter__(self) -> Iterator[Any]:
        """Go through the names."""
        return iter(self.inner())

    def __len__(self) -> int:
        """Count the names."""
        return len(self.inner())

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


class Rebuilt(Inert):
    """An object that is a tensor: what torch would have rebuilt, with which arguments."""

    __slots__ = ()


def _state_dict(module: Mapping[Any, Any]) -> Iterator[tuple[Hashable, Any]]:
    """Yield what a module's state dict holds: parameters, buffers that are saved, modules, in this order."""
    left_out: Any = module.get("_non_persistent_buffers_set")
    names: list[Any] = []
    if isinstance(left_out, Inert):
        names = [*(left_out.listed or ()), *(one for part in left_out.args if isinstance(part, list) for one in part)]
    hidden = {name for name in names if isinstance(name, str)}
    for key in MODULE:
        for name, value in module[key].items():
            kind = Inert if key == "_modules" else Rebuilt
            if isinstance(name, str) and isinstance(value, kind) and not (key == "_buffers" and name in hidden):
                yield name, value
