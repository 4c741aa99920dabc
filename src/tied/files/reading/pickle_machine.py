"""A machine for pickles that makes lists, dicts, tuples and plain values, and nothing else.

Owns: what is made, and what that may cost. Must not import, look up or call what a pickle names: all of it stays
inert. Read next: `pickle_codes.py`, the instructions.

Each instruction is at least a byte long, so a file is gone through at most once. What an instruction makes is counted,
and bounded by the size of the file. No key is hashed that could take longer than reading it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from mmap import mmap
from pathlib import Path
from typing import Any, NoReturn, cast

from tied.files.reading.inert import External, Inert, Named, Rebuilt, key_of
from tied.files.reading.refusal import AGAIN, SPLIT, refuse

MOST_STEPS = 2_500_000
MOST_PICKLE = 1 << 26
MOST_LINE = 1000
MOST_PLACE = 1 << 32
CONTAINER, CALL, NAME, TUPLE, MARK, TENSOR = 8, 8, 3, 3, 2, 100  # steps beyond that of the instruction

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
TENSORS = frozenset(
    [
        "torch.nn.parameter.Parameter",
        "torch.autograd.variable.Variable",
        "torch._tensor._rebuild_from_type",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_csr_tensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_wrapper_subclass",
        "torch._utils._rebuild_xla_tensor",
    ]
)
"""The calls that give a tensor, of torch from its first version on."""


class Machine:
    """One file of pickles, gone through one after another.

    Attributes:
        at: The byte at which the next pickle begins.
        externals: What lies outside the pickles, in the order in which they name it.
    """

    def __init__(self, raw: bytes | bytearray | mmap, path: Path, *, size: int) -> None:
        """Take a file's bytes; its `size` bounds what may be made of them."""
        self.raw, self.path = raw, path
        self.end = min(len(raw), MOST_PICKLE * (1 + (size >> 30)))
        self.most = self.left = MOST_STEPS + (size >> 4)
        self.at = 0
        self.externals: list[External] = []
        self.names: dict[str, Named] = {}
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    # -- what is read

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start, self.at = self.at, self.at + count
        if self.at > self.end:
            raise IndexError
        return bytes(self.raw[start : self.at])

    def number(self, width: int) -> int:
        """Return a number that is not negative."""
        return int.from_bytes(self.take(width), "little")

    def line(self, most: int = MOST_LINE) -> bytes:
        """Return what stands before the next end of a line."""
        found = self.raw.find(b"\n", self.at, min(self.at + most, self.end))
        if found < 0:
            raise IndexError
        start, self.at = self.at, found + 1
        return bytes(self.raw[start:found])

    # -- what is made

    def charge(self, cost: int) -> None:
        """Count what is made, beyond the instruction itself."""
        self.left -= cost

    def marked(self) -> list[Any]:
        """Return what lies above the last mark."""
        parts, self.stack = self.stack, self.below.pop()
        return parts

    def remember(self, place: int) -> None:
        """Keep the top of the stack."""
        if not 0 <= place < MOST_PLACE:
            raise ValueError
        self.memo[place] = self.stack[-1]

    def named(self, module: str, name: str) -> Named:
        """Return what stands for a class or a function."""
        self.charge(NAME)
        text = f"{PYTHON_2.get(module, module)}.{name}"
        return self.names.setdefault(text, Named(text))

    def call(self, what: Any, args: Any) -> Any:
        """Return what stands for a call; a plain container is made."""
        self.charge(CALL)
        if not isinstance(args, tuple) or not isinstance(what, Named | Inert):
            raise TypeError
        found = cast(tuple[Any, ...], args)
        if isinstance(what, Inert):
            return Inert(what.kind, found)
        if what.name in TENSORS:
            self.charge(TENSOR)
            return Rebuilt(what.name, found)
        plain = _PLAIN.get(what.name)
        made = plain(self, found) if plain else None
        return Inert(what.name, found) if made is None else made

    def pairs(self, items: Any) -> dict[Hashable, Any]:
        """Return a dict of some pairs."""
        self.charge(CONTAINER + len(items))
        return {key_of(key): value for key, value in items}

    def put(self, keys: list[Any], values: list[Any]) -> None:
        """Give entries to the dict, or the object, on top."""
        there: Any = self.stack[-1]
        if isinstance(there, Rebuilt) or not isinstance(there, dict | Inert) or len(keys) != len(values):
            raise TypeError
        if isinstance(there, Inert):
            there.keyed = there.keyed if there.keyed is not None else {}
            there = there.keyed
        cast(dict[Hashable, Any], there).update(zip(map(key_of, keys), values, strict=True))

    def extend(self, values: list[Any]) -> None:
        """Append to the list, or the object, on top."""
        there: Any = self.stack[-1]
        if isinstance(there, Rebuilt) or not isinstance(there, list | Inert):
            raise TypeError
        if isinstance(there, Inert):
            there.listed = there.listed if there.listed is not None else []
            there = there.listed
        cast(list[Any], there).extend(values)

    def build(self) -> None:
        """Give the object on top its state; what torch and Python keep beside a dict is not needed."""
        state: Any = self.stack.pop()
        there: Any = self.stack[-1]
        if isinstance(there, Rebuilt):
            if isinstance(state, tuple) and len(cast(tuple[Any, ...], state)) > 3:
                raise TypeError  # other elements
        elif isinstance(there, Inert):
            there.state = state
            if _OLD_TENSOR.fullmatch(there.name) and _is_view(state):
                there.become("torch._utils._rebuild_tensor", state)
        elif not isinstance(there, dict):
            raise TypeError

    # -- what is refused

    def refuse_length(self) -> NoReturn:
        """Refuse what makes too much."""
        found, expected = f"more than {self.most} steps", "less, in a file of this size"
        refuse(self.path, "It would take too long to unpickle.", found=found, expected=expected, fix=SPLIT)

    def refuse_broken(self, found: str) -> NoReturn:
        """Refuse what is no pickle."""
        refuse(self.path, "Its pickle is broken.", found=found, expected="a pickle of torch.save", fix=AGAIN)


_OLD_TENSOR = re.compile(r"torch\.(cuda\.)?\w*Tensor")  # before torch 0.2


def _is_view(state: Any) -> bool:
    """Tell whether these are a storage, an offset, sizes and strides."""
    return isinstance(state, tuple) and len(cast(tuple[Any, ...], state)) == 4 and isinstance(state[0], External)


# -- the plain containers -----------------------------------------------------------------------------


def _dict(machine: Machine, args: tuple[Any, ...]) -> dict[Hashable, Any] | None:
    if not args:
        return machine.pairs(())
    first: Any = args[0]
    if len(args) > 1 or not isinstance(first, dict | list):
        return None
    return machine.pairs(cast(list[Any], first) if isinstance(first, list) else cast(dict[Any, Any], first).items())


def _default_dict(machine: Machine, args: tuple[Any, ...]) -> dict[Hashable, Any] | None:
    return _dict(machine, args[1:])


def _size(machine: Machine, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return args[0] if len(args) == 1 and isinstance(args[0], tuple) else None


def _bytes(machine: Machine, args: tuple[Any, ...]) -> bytes | None:
    """Undo how the second protocol writes bytes."""
    text, code = args if len(args) == 2 else (None, None)
    if not isinstance(text, str) or code not in ("latin1", "latin-1"):
        return None
    machine.charge(len(text) >> 4)
    return text.encode("latin-1")


def _no_bytes(machine: Machine, args: tuple[Any, ...]) -> bytes | None:
    return None if args else b""


_PLAIN: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "builtins.dict": _dict,
    "collections.Counter": _dict,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _default_dict,
    "torch.Size": _size,
    "_codecs.encode": _bytes,
    "builtins.bytes": _no_bytes,
}
