"""The parser: text to expression, by recursive descent over a handful of rules.

Owns: the grammar. Must not evaluate anything. Read next: `projection.py`.

    sum     := product (("+" | "-") product)*
    product := unary (("*" | "/" | "@") unary)*
    unary   := "-"* postfix
    postfix := atom ("." name ["(" arguments ")"] | "[" items "]")*
    atom    := number | list | address | ("cat" | "stack") "(" list ["," dim] ")" | "kron" "(" sum "," sum ")" | "(" sum ")"

Given the tree of a model, an address takes as many segments as the model has, so that a submodule
named `T` or `flip` is found; without one, it ends before the first name of a transform.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn, Protocol

import torch

from tied.algebra.address import NUMBER, WORD, Address, show_address
from tied.algebra.assembly import cat, stack
from tied.algebra.arithmetic import kron
from tied.algebra.expression import Expression, Ref
from tied.algebra.transform import METHODS
from tied.errors import AddressError, ParseError, TieError, nearest

MOST_CHARACTERS = 100_000
MOST_DEPTH = 64
ATTRIBUTES = ("T", "mT")
FUNCTIONS: dict[str, Callable[..., Expression]] = {"cat": cat, "stack": stack, "kron": kron}
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
SPACE = re.compile(r"\s*")


class Tree(Protocol):
    """What the parser asks of a model."""

    @property
    def title(self) -> str:
        """The model's name in messages."""
        ...

    def names(self, address: Address) -> Collection[str] | None:
        """Return the names directly under the module at `address`; None where no module is."""
        ...


def parse(text: str, tree: Tree | None = None) -> Expression:
    """Read an expression.

    Law: parse(str(e)) == e, and str(parse(text)) is the canonical form of `text`.

    Args:
        text: Such as `"encoder.weight.T"` or `"2 * cat([a.w, b.w], 0)"`.
        tree: The names of a model, to settle where addresses end.

    Raises:
        ParseError: `text` is not an expression; the message names the position.
        AddressError: `text` names nothing in `tree`; the message names the nearest valid names.

    >>> str(parse("(2 * layers[0].w).t()[2:][:5]"))
    '2 * layers.0.w.T[2:7]'
    """
    parser = _Parser(text, tree)
    return parser.whole(parser.sum)


def parse_address(text: str, tree: Tree | None = None) -> Address:
    """Read an address alone: `layers[0].weight` or `layers.0.weight`.

    Raises:
        ParseError: `text` is not an address.
        AddressError: `text` names nothing in `tree`.
    """
    parser = _Parser(text, tree)
    if tree is None:
        return parser.whole(parser.bare_address)
    found = parser.whole(parser.postfix)
    if not isinstance(found, Ref):
        parser.fail("This is not an address.", found=str(found), expected="an address without transforms", at=0)
    return found.address


class _Parser:
    """A cursor over one text; each method reads one rule and leaves the cursor behind it."""

    def __init__(self, text: str, tree: Tree | None) -> None:
        self.source, self.tree, self.at, self.depth = text, tree, 0, 0
        if len(text) > MOST_CHARACTERS:
            self.fail("The text is too long.", found=f"{len(text)} characters", expected=f"at most {MOST_CHARACTERS}")

    # -- characters ---------------------------------------------------------------------------------

    def fail(self, problem: str, *, found: str, expected: str, at: int | None = None) -> NoReturn:
        """Raise with the position and its surroundings."""
        at = self.at if at is None else at
        near = self.source[max(0, at - 20) : at + 20]
        raise ParseError(
            problem,
            found=f"{found}, at position {at + 1} of '{near if len(self.source) > 60 else self.source}'",
            expected=expected,
            fix="write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'",
        )

    def skip(self) -> str:
        """Skip white space; return the next character, or an empty text at the end."""
        space = SPACE.match(self.source, self.at)
        self.at = space.end() if space else self.at
        return self.source[self.at : self.at + 1]

    def take(self, symbol: str) -> bool:
        """Step over `symbol` if it comes next."""
        if not symbol or self.skip() != symbol:
            return False
        self.at += 1
        return True

    def need(self, symbol: str) -> None:
        """Step over `symbol`, which must come next."""
        if not self.take(symbol):
            self.fail("Something is missing.", found=self.shown(), expected=f"'{symbol}'")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Step over a pattern if it comes next."""
        self.skip()
        found = pattern.match(self.source, self.at)
        if not found:
            return None
        self.at = found.end()
        return found.group()

    def shown(self) -> str:
        """Name what comes next, for a message."""
        return repr(self.skip()) if self.skip() else "the end"

    def whole(self, rule: Callable[[], Any]) -> Any:
        """Read the whole text by one rule; it must be an expression or an address."""
        result = rule()
        if self.skip():
            self.fail("The text goes on where it should end.", found=self.shown(), expected="the end, or an operator")
        if not isinstance(result, Expression | tuple):
            self.fail("This names no tensor.", found=f"the constant {self.source.strip()[:40]}", expected="an address", at=0)
        return result

    # -- operators ----------------------------------------------------------------------------------

    def sum(self) -> Any:
        """Read a sum."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            self.fail("Too many parentheses inside each other.", found=f"{self.depth}", expected=f"at most {MOST_DEPTH}")
        value = self.product()
        while (sign := self.skip()) in ("+", "-") and sign:
            self.at += 1
            value = self.combine(sign, value, self.product())
        self.depth -= 1
        return value

    def product(self) -> Any:
        """Read a product."""
        value = self.unary()
        while (sign := self.skip()) in ("*", "/", "@") and sign:
            self.at += 1
            value = self.combine(sign, value, self.unary())
        return value

    def unary(self) -> Any:
        """Read minus signs and what follows."""
        minus = 0
        while self.take("-"):
            minus += 1
        value = self.postfix()
        return self.combine("*", -1, value) if minus % 2 else value

    def combine(self, sign: str, left: Any, right: Any) -> Any:
        """Apply an operator to numbers, lists and expressions."""
        start = self.at
        try:
            if isinstance(left, Expression) or isinstance(right, Expression):
                return _operate(sign, left, right)
            if isinstance(left, int | float) and isinstance(right, int | float):
                return _fold(sign, left, right)
        except TieError:
            raise
        except (TypeError, ArithmeticError) as error:
            self.fail("These do not go together.", found=str(error) or type(error).__name__, expected="numbers", at=start)
        self.fail(f"'{sign}' joins expressions and numbers.", found="a list", expected="a list times an expression")

    # -- atoms and what follows them ----------------------------------------------------------------

    def postfix(self) -> Any:
        """Read an atom and the transforms behind it."""
        value = self.atom()
        while True:
            if isinstance(value, Expression) and self.skip() == ".":
                self.at += 1
                value = self.transformed(value)
            elif isinstance(value, Expression) and self.take("["):
                value = value[self.items()]
            else:
                return value

    def atom(self) -> Any:
        """Read a number, a list, a parenthesis, a function or an address."""
        if (number := self.match(NUMBER)) is not None and not self.is_child(number):
            return self.number(number)
        if number is not None:
            self.at -= len(number)
        start = self.at
        if self.take("("):
            value = self.sum()
            self.need(")")
            return value
        if self.skip() == "[" and not self.quoted_ahead():
            return self.list()
        word = self.match(WORD)
        if word in FUNCTIONS and self.skip() == "(":
            return self.function(word)
        self.at = start
        return self.address()

    def number(self, text: str) -> int | float:
        """Read a finite number."""
        digits = text.lstrip("0")
        value = int(digits or "0") if text.isdigit() and len(digits) <= 19 else float(text)
        if not math.isfinite(value) or (text.isdigit() and value >= 2**63):
            self.fail("A number is too large.", found=text[:24], expected="a 64-bit integer or a finite float")
        return value

    def list(self) -> list[Any]:
        """Read `[value, ...]`."""
        values = list[Any]()
        self.need("[")
        while not self.take("]"):
            values.append(self.sum())
            if self.skip() != "]":
                self.need(",")
        return values

    def function(self, name: str) -> Expression:
        """Read `cat(...)`, `stack(...)` or `kron(...)`."""
        start = self.at
        positional, named = self.arguments()
        try:
            return FUNCTIONS[name](*positional, **named)
        except (TypeError, AttributeError) as error:
            self.fail(f"{name}(...) does not take these arguments.", found=str(error), expected=_USAGE[name], at=start)

    def transformed(self, value: Expression) -> Expression:
        """Read the transform behind a dot."""
        start = self.at
        name = self.match(WORD) or ""
        if name not in METHODS:
            self.unknown(value, name, start)
        if name in ATTRIBUTES:
            return getattr(value, name)
        if self.skip() != "(":
            self.fail(f".{name} is a method.", found=self.shown(), expected=f"'(' as in .{name}(...)")
        if name == "to":
            return self.moved(value)
        positional, named = self.arguments()
        try:
            return getattr(value, name)(*positional, **named)
        except TypeError as error:
            self.fail(f".{name} does not take these arguments.", found=str(error), expected="none", at=start)

    def unknown(self, value: Expression, name: str, start: int) -> NoReturn:
        """Refuse a name that is neither a child nor a transform, and name the nearest ones."""
        children: Collection[str] = ()
        if isinstance(value, Ref) and self.tree and (children := self.tree.names(value.address) or ()):
            self.no_such(value.address, name, children)
        near = nearest(name, METHODS)
        self.fail(
            f"'{name}' is not a transform.",
            found=f".{name}" if name else self.shown(),
            expected=near or "a transform such as .T, .reshape(...), .exp()",
            at=start,
        )

    def moved(self, value: Expression) -> Expression:
        """Read `.to(float16)` or `.to("cuda:0")`."""
        self.need("(")
        quoted = self.match(STRING)
        words = [] if quoted else [self.match(WORD) or ""]
        while not quoted and self.take("."):
            words.append(self.match(WORD) or "")
        target = _unquote(quoted) if quoted else getattr(torch, words[-1], None)
        if not quoted and (not isinstance(target, torch.dtype) or words[:-1] not in ([], ["torch"])):
            self.fail(".to takes a dtype or a device.", found=".".join(words), expected='float16, or "cuda:0" in quotes')
        self.need(")")
        return value.to(target)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Read `(value, name=value, ...)`."""
        positional, named = list[Any](), dict[str, Any]()
        self.need("(")
        while not self.take(")"):
            keyword = self.match(_KEYWORD)
            value = self.argument()
            if keyword:
                named[keyword.rstrip("= \t\n")] = value
            else:
                positional.append(value)
            if self.skip() != ")":
                self.need(",")
        return positional, named

    def argument(self) -> Any:
        """Read one argument: a value, or a tuple of integers."""
        start = self.at
        if self.take("("):
            values = [self.sum()]
            while self.take(","):
                if self.skip() != ")":
                    values.append(self.sum())
            self.need(")")
            if len(values) > 1 or self.source[: self.at - 1].rstrip().endswith(","):
                return tuple(values)
            self.at = start
        return self.sum()

    def items(self) -> Any:
        """Read what stands between [ and ]: slices, integers, `...`, `None`, or one expression."""
        items = [self.item()]
        while self.take(","):
            items.append(self.item())
        self.need("]")
        return items[0] if len(items) == 1 else tuple(items)

    def item(self) -> Any:
        """Read one item of a subscript."""
        if self.match(_ELLIPSIS):
            return Ellipsis
        if self.match(_NONE):
            return None
        bounds: list[Any] = [None if self.skip() in (":", "]", ",") else self.sum()]
        while len(bounds) < 3 and self.take(":"):
            bounds.append(None if self.skip() in (":", "]", ",") else self.sum())
        if len(bounds) == 1:
            return bounds[0]
        return slice(*bounds)

    # -- addresses ----------------------------------------------------------------------------------

    def is_child(self, segment: str) -> bool:
        """Tell whether the model itself has a child of that name: a ModuleList given as the model."""
        return self.tree is not None and segment in (self.tree.names(()) or ())

    def quoted_ahead(self) -> bool:
        """Tell whether a quoted segment `["..."]` comes next, or an index of a list given as the model."""
        after = _BRACKET.match(self.source, self.at)
        return bool(after) and (after.group(1)[0] in "\"'" or self.is_child(after.group(1)))

    def address(self) -> Ref:
        """Read as many segments as belong to the address."""
        start = self.at
        address: Address = ()
        while True:
            before = self.at
            segment = self.segment(address)
            if segment is None:
                self.at = before
                break
            address = (*address, segment)
        if not address:
            self.at = start
            self.fail("An address is missing.", found=self.shown(), expected="an address such as 'encoder.weight'")
        return Ref(address)

    def segment(self, address: Address) -> str | None:
        """Read the next segment of an address; None where a transform or an operator comes."""
        names = self.tree.names(address) if self.tree else None
        bracket = self.match(_BRACKET)
        if bracket:
            name = _unquote(_BRACKET.match(bracket).group(1))  # type: ignore[union-attr]
            quoted = bracket.lstrip("[ \t\n")[0] in "\"'"
        elif address and not self.take("."):
            return None
        else:
            name, quoted = self.match(WORD), False
        if name is None:
            return None
        if names is None:
            return self.bare_segment(name, bracket is not None, quoted, bool(address))
        return self.child(address, name, names, bracket is not None and not quoted)

    def child(self, address: Address, name: str, names: Collection[str], is_index: bool) -> str | None:
        """Return the child that `name` means; None where it can be a transform instead."""
        if is_index and name.startswith("-") and all(other.isdigit() for other in names) and int(name) >= -len(names):
            name = sorted(names, key=int)[int(name)]
        if name in names:
            return name
        if not address or (names and name not in METHODS and not is_index):
            self.no_such(address, name, names)
        return None

    def bare_segment(self, name: str, bracket: bool, quoted: bool, inside: bool) -> str | None:
        """Decide without a model (or behind a tensor) whether `name` still belongs to the address."""
        if self.tree is not None and inside:
            return None
        if bracket and not quoted:
            follow = _DOTTED.match(self.source, self.at)
            return name if name.isdigit() and follow and follow.group(1) not in METHODS else None
        called = self.skip() == "(" or name in ATTRIBUTES
        return None if inside and not quoted and name in METHODS and called else name

    def bare_address(self) -> Address:
        """Read an address that stands alone, so that every segment belongs to it."""
        segments = list[str]()
        while self.skip():
            bracket = self.match(_BRACKET)
            if not bracket and segments:
                self.need(".")
            word = _unquote(_BRACKET.match(bracket).group(1)) if bracket else self.match(WORD)  # type: ignore[union-attr]
            if not word:
                self.fail("A segment is missing.", found=self.shown(), expected="a name")
            segments.append(word)
        if not segments:
            self.fail("The address is empty.", found="nothing", expected="an address such as 'encoder.weight'")
        return tuple(segments)

    def no_such(self, address: Address, name: str, names: Collection[str]) -> NoReturn:
        """Refuse a name that the model does not have."""
        assert self.tree is not None
        rest = re.match(r"[\w.\[\]]*", self.source[self.at :])
        whole = show_address((*address, name)) + (rest.group() if rest else "")
        near = nearest(name, names)
        owner = f"'{show_address(address)}'" if address else "the model"
        some = "', '".join(sorted(names)[:5])
        raise AddressError(
            f"'{whole}' is not a parameter, buffer or module of {self.tree.title}.",
            found=f"{owner} has no '{name}'",
            expected=f"one of '{some}'{' ...' if len(names) > 5 else ''}" if names else "a name (it has none)",
            fix=f"did you mean {near}?" if near else "list the names with dict(model.named_parameters())",
        )


_KEYWORD = re.compile(r"[a-zA-Z_]\w*\s*=(?!=)")
_ELLIPSIS = re.compile(r"\.\.\.")
_NONE = re.compile(r"None\b")
_BRACKET = re.compile(rf"\[\s*(-?\d+|{STRING.pattern})\s*\]")
_DOTTED = re.compile(r"\s*\.\s*(\w+)")
_USAGE = {"cat": "cat([a, b], dim)", "stack": "stack([a, b], dim)", "kron": "kron(a, b)"}


def _unquote(text: str) -> str:
    if text[0] == "'":
        text = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
    if text[0] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text[1:-1]


def _operate(sign: str, left: Any, right: Any) -> Expression:
    if sign == "*":
        return left * right if isinstance(left, Expression) else right * left
    if not isinstance(left, Expression):
        raise TypeError(f"a number or list before '{sign}'")
    if sign in "+-" and not isinstance(right, Expression):
        raise TypeError(f"a number or list after '{sign}'")
    operations = {"+": left.__add__, "-": left.__sub__, "/": left.__truediv__, "@": left.__matmul__}
    return operations[sign](right)


def _fold(sign: str, left: int | float, right: int | float) -> int | float:
    if sign == "@":
        raise TypeError("numbers around '@'")
    value = {"+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right, "/": lambda: left / right}[
        sign
    ]()
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ArithmeticError("the number is too large")
    return value
