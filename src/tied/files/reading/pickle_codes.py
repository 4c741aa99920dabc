"""The instructions of pickles, protocols 0 to 5, done by a machine that makes nothing but plain containers.

Owns: what each byte means. Must not decide what is made of a name: that is `pickle_machine.py`.
Read next: `rebuild.py`, which makes tensors of what torch wrote.

Out of it stay the registry of `copyreg`, and buffers that lie beside the pickle: no file of torch has them.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable, Hashable
from typing import Any, cast

from tied.errors import TieError
from tied.files.reading.inert import External, Inert, Named
from tied.files.reading.pickle_machine import CALL, CONTAINER, MARK, MOST_LINE, MOST_PICKLE, TUPLE, Machine


def load(machine: Machine) -> Any:
    """Go through one pickle, from where the machine stands, and return what it holds.

    Raises:
        FileError: It is broken, or makes more than a file of this size may.
    """
    machine.stack, machine.below, machine.memo = [], [], {}
    raw, end, place = machine.raw, machine.end, machine.at
    try:
        while machine.at < end:
            place = machine.at
            machine.at = place + 1
            machine.left -= 1
            if machine.left < 0:
                machine.refuse_length()
            code = raw[place]
            if code == STOP:
                return machine.stack.pop()
            _DO[code](machine)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, TieError):
            raise
        machine.refuse_broken(f"at byte {place} {type(error).__name__}")
    machine.refuse_broken(f"no end within {end} bytes")


def _unknown(machine: Machine) -> None:
    raise ValueError


def _constant(value: Any) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(value)

    return push


def _whole(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(int.from_bytes(machine.take(width), "little", signed=width == 4))

    return push


def _text(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(str(machine.take(machine.number(width)), "utf-8", "surrogatepass"))

    return push


def _raw(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(machine.take(machine.number(width)))

    return push


def _python_2(raw: bytes) -> str | bytes:
    """Return a text of Python 2; what is none stays bytes, as the elements of arrays are."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _old_text(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(_python_2(machine.take(machine.number(width))))

    return push


def _quoted(machine: Machine) -> None:
    raw = machine.line(MOST_PICKLE)
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise ValueError
    if b"\\" in raw:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            raw = b"'" + codecs.escape_decode(raw[1:-1])[0] + b"'"
    machine.stack.append(_python_2(raw[1:-1]))


def _escaped(machine: Machine) -> None:
    machine.stack.append(str(machine.line(MOST_PICKLE), "raw-unicode-escape"))


def _int_line(machine: Machine) -> None:
    raw = machine.line()
    machine.stack.append(raw == b"01" if raw in (b"00", b"01") else int(raw))


def _long_line(machine: Machine) -> None:
    machine.stack.append(int(machine.line().rstrip(b"L")))


def _long(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        count = machine.number(width)
        if count > MOST_LINE:
            raise ValueError
        machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))

    return push


def _float_line(machine: Machine) -> None:
    machine.stack.append(float(machine.line()))


def _float(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _new(make: Callable[[], Any]) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.charge(CONTAINER)
        machine.stack.append(make())

    return push


def _empty_set() -> Inert:
    return Inert("builtins.set")


def _mark(machine: Machine) -> None:
    machine.charge(MARK)
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _double(machine: Machine) -> None:
    machine.stack.append(machine.stack[-1])


def _tuple(count: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        machine.left -= TUPLE
        stack[-count:] = [tuple(stack[-count:])]

    return push


def _marked_tuple(machine: Machine) -> tuple[Any, ...]:
    machine.charge(TUPLE)
    return tuple(machine.marked())


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        made = make(machine)
        machine.stack.append(made)

    return push


def _marked_dict(machine: Machine) -> dict[Hashable, Any]:
    parts = machine.marked()
    return machine.pairs(list(zip(parts[::2], parts[1::2], strict=True)))


def _frozen_set(machine: Machine) -> Inert:
    machine.charge(CALL)
    return Inert("builtins.frozenset", (machine.marked(),))


def _set_items(machine: Machine) -> None:
    parts = machine.marked()
    machine.put(parts[::2], parts[1::2])


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.put([key], [value])


def _append(machine: Machine) -> None:
    value = machine.stack.pop()
    machine.extend([value])


def _global(machine: Machine) -> Named:
    return machine.named(machine.line().decode(), machine.line().decode())


def _stack_global(machine: Machine) -> Named:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str) or max(len(name), len(module)) > MOST_LINE:
        raise TypeError
    return machine.named(module, name)


def _call(machine: Machine) -> Any:
    args, what = machine.stack.pop(), machine.stack.pop()
    return machine.call(what, args)


def _call_with_names(machine: Machine) -> Any:
    more, args, what = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    made = machine.call(what, args)
    if more and (not isinstance(made, Inert) or not isinstance(more, dict)):
        raise TypeError
    if more:
        made.keyed = more
    return made


def _instance(machine: Machine) -> Any:
    what = _global(machine)
    return machine.call(what, tuple(machine.marked()))


def _object(machine: Machine) -> Any:
    what, *args = machine.marked()
    return machine.call(what, tuple(args))


def _external(machine: Machine) -> Any:
    machine.charge(CALL)
    said: Any = machine.stack.pop()
    if isinstance(said, tuple) and said[:1] == ("module",) and isinstance(said[-1], Named | str | None):
        return cast(Any, said[1])  # a class, and the source code that it had
    found = External(said)
    machine.externals.append(found)
    return found


def _get(width: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        machine.stack.append(machine.memo[machine.number(width)])

    return push


def _put(width: int) -> Callable[[Machine], None]:
    def keep(machine: Machine) -> None:
        machine.remember(machine.number(width))

    return keep


STOP = ord(".")
_METHODS: dict[int, Callable[[Machine], Any]] = {
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): Machine.marked,
    ord("2"): _double,
    ord("F"): _float_line,
    ord("G"): _float,
    ord("I"): _int_line,
    ord("L"): _long_line,
    ord("J"): _whole(4),
    ord("K"): _whole(1),
    ord("M"): _whole(2),
    0x8A: _long(1),
    0x8B: _long(4),
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    ord("S"): _quoted,
    ord("T"): _old_text(4),
    ord("U"): _old_text(1),
    ord("V"): _escaped,
    ord("X"): _text(4),
    0x8C: _text(1),
    0x8D: _text(8),
    ord("B"): _raw(4),
    ord("C"): _raw(1),
    0x8E: _raw(8),
    0x96: _raw(8),
    ord("]"): _new(list),
    ord("}"): _new(dict),
    0x8F: _new(_empty_set),
    ord("l"): _push(Machine.marked),
    ord("d"): _push(_marked_dict),
    ord("t"): _push(_marked_tuple),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    0x91: _push(_frozen_set),
    ord("a"): _append,
    ord("e"): lambda machine: machine.extend(machine.marked()),
    0x90: lambda machine: machine.extend(machine.marked()),
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("b"): Machine.build,
    ord("c"): _push(_global),
    0x93: _push(_stack_global),
    ord("R"): _push(_call),
    0x81: _push(_call),
    0x92: _push(_call_with_names),
    ord("i"): _push(_instance),
    ord("o"): _push(_object),
    ord("P"): _push(lambda machine: External(machine.line())),
    ord("Q"): _push(_external),
    ord("g"): lambda machine: machine.stack.append(machine.memo[int(machine.line())]),
    ord("h"): _get(1),
    ord("j"): _get(4),
    ord("p"): lambda machine: machine.remember(int(machine.line())),
    ord("q"): _put(1),
    ord("r"): _put(4),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    0x80: lambda machine: machine.take(1),
    0x95: lambda machine: machine.take(8),
}
_DO = [_METHODS.get(code, _unknown) for code in range(256)]
