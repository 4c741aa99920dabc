"""The parser: text to expression, by recursive descent over a handful of rules.

Owns: the grammar. Must not evaluate anything. Read next: `projection.py`.

    sum     := product (("+" | "-") product)*
    product := unary (("*" | "/" | "@") unary)*
    unary   := "-"* postfix
    postfix := atom ("." name ["(" arguments ")"] | "[" items "]")*
    atom    := number | list | address | "(" sum ")" | function
    function := ("cat" | "stack") "(" list ["," dim] ")" | "kron" "(" sum "," sum ")"
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from tied.algebra.address import NUMBER, STRING, WORD, Address
from tied.algebra.address_parser import Locator, Tree, named, unquote
from tied.algebra.expression import Expression, Ref
from tied.algebra.transform import ATTRIBUTES, FORMS, FUNCTIONS, METHODS, spelled
from tied.errors import KindError, ParseError, TieError, nearest, short

MOST_DEPTH = 64


@spelled("parse")
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
    known = named(text, tree)
    if known is not None:
        return Ref(known)
    parser = _Parser(text, tree)
    found = parser.whole(parser.sum)
    if not isinstance(found, Expression):
        constant = f"the constant {short(text.strip())}"
        parser.fail("This names no tensor.", found=constant, expected="an address", at=0)
    return found


def parse_address(text: str, tree: Tree | None = None) -> Address:
    """Read an address alone: `layers[0].weight` or `layers.0.weight`.

    Raises:
        ParseError: `text` is not an address.
        AddressError: `text` names nothing in `tree`.
    """
    known = named(text, tree)
    if known is not None:
        return known
    parser = _Parser(text, tree)
    if tree is None:
        return parser.whole(parser.bare_address)
    found = parser.whole(parser.postfix)
    if not isinstance(found, Ref):
        parser.fail("This is not an address.", found=str(found), expected="an address without transforms", at=0)
    return found.address


def ref(address: str | Address) -> Ref:
    """Make the expression that reads one address.

    >>> ref("layers[0].weight") == ref("layers.0.weight") == ref(("layers", "0", "weight"))
    True
    """
    return Ref(address if isinstance(address, tuple) else parse_address(address))


class _Parser(Locator):
    """A cursor over one text; each method reads one rule and leaves the cursor behind it."""

    depth = 0

    def whole(self, rule: Callable[[], Any]) -> Any:
        """Read the whole text by one rule; every error names the position."""
        try:
            result = rule()
        except (ParseError, KindError) as error:
            if ", at position " not in error.found:
                error.found = f"{error.found}, {self.place()}"
            raise
        if self.skip():
            self.fail("The text goes on where it should end.", found=self.shown(), expected="the end, or an operator")
        return result

    # -- operators ----------------------------------------------------------------------------------

    def sum(self) -> Any:
        """Read a sum."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            self.fail(
                "Too many parentheses inside each other.", found=f"{self.depth}", expected=f"at most {MOST_DEPTH}"
            )
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
        kinds = _kind(left), _kind(right)
        if kinds == (_EXPRESSION, _EXPRESSION) or kinds in _FITTING.get(sign, []):
            return _OPERATORS[sign](left, right)
        if kinds != (_NUMBER, _NUMBER) or sign == "@":
            wanted = _WANTED.get(sign, f"an expression {sign} an expression")
            self.fail(f"'{sign}' cannot stand here.", found=f"{kinds[0]} {sign} {kinds[1]}", expected=wanted)
        value = _OPERATORS[sign](left, right) if sign != "/" or right else math.inf
        if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
            self.fail("This number is not finite, or too large.", found=f"{left} {sign} {right}", expected="a number")
        return value

    # -- atoms and what follows them ----------------------------------------------------------------

    def postfix(self) -> Any:
        """Read an atom and the transforms behind it."""
        value = self.atom()
        while True:
            if isinstance(value, Expression) and self.skip() == ".":
                self.at += 1
                value = self.transformed(value)
            elif isinstance(value, Expression) and self.take("["):
                value = self.selected(value)
            else:
                return value

    def atom(self) -> Any:
        """Read a number, a list, a parenthesis, a function or an address."""
        self.skip()
        start = self.at
        number = self.match(NUMBER)
        if number and not self.is_child(start, self.at):
            return self.number(number, start)
        self.at = start
        if self.take("("):
            return self.group()
        if self.skip() == "[" and not self.quoted_ahead():
            return self.list()
        word = self.match(WORD)
        if word in FUNCTIONS and self.skip() == "(":
            return self.function(word)
        self.at = start
        return self.address()

    def group(self) -> Any:
        """Read what stands between ( and ): one value, or a tuple where there is a comma."""
        values, comma = list[Any](), False
        while not self.take(")"):
            values.append(self.sum())
            comma = self.take(",")
            if not comma and self.skip() != ")":
                self.need(")")
        return values[0] if len(values) == 1 and not comma else tuple(values)

    def number(self, text: str, start: int) -> int | float:
        """Make a finite number of its digits."""
        digits = text.lstrip("0")
        value = int(digits or "0") if text.isdigit() and len(digits) <= 19 else float(text)
        if not math.isfinite(value) or (text.isdigit() and value >= 2**63):
            expected = "a 64-bit integer or a finite float"
            self.fail("A number is too large.", found=short(text), expected=expected, at=start)
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
        return self.call(name, FORMS[name], _USAGE[name])

    def call(self, name: str, builder: Callable[..., Expression], usage: str) -> Expression:
        """Read the arguments and call `builder`; what it refuses is refused at the opening parenthesis."""
        start = self.at
        positional, named = self.arguments()
        end, self.at = self.at, start
        try:
            result = builder(*positional, **named)
        except TypeError as error:
            if isinstance(error, TieError):
                raise
            given = short(name + self.source[start:end])
            self.fail(f"{name} does not take these arguments.", found=given, expected=usage)
        self.at = end
        return result

    def selected(self, value: Expression) -> Expression:
        """Read the items behind a bracket and select them; what is refused is refused at the bracket."""
        start = self.at - 1
        items = self.items()
        end, self.at = self.at, start
        result = value[items]
        self.at = end
        return result

    def transformed(self, value: Expression) -> Expression:
        """Read the transform behind a dot."""
        start = self.at
        name = self.match(WORD) or ""
        if name not in METHODS:
            self.unknown(name, start)
        if name in ATTRIBUTES:
            return getattr(value, name)
        if self.skip() != "(":
            self.fail(f".{name} is a method.", found=self.shown(), expected=f"'(' as in .{name}(...)")
        if name == "to":
            return self.moved(value)
        return self.call(f".{name}", getattr(value, name), f".{name}()")

    def unknown(self, name: str, start: int) -> NoReturn:
        """Refuse a name that is neither a child nor a transform, and name the nearest ones."""
        if not name:
            self.fail("A name is missing behind a dot.", found=self.shown(), expected="a transform such as .T")
        near = nearest(name, METHODS)
        self.fail(
            f"'{short(name)}' is not a transform.",
            found=f".{short(name)}",
            expected=near or "a transform such as .T, .reshape(...), .exp()",
            at=start,
        )

    def moved(self, value: Expression) -> Expression:
        """Read `.to(float16)` or `.to("cuda:0")`."""
        self.need("(")
        quoted = self.match(STRING)
        target = unquote(quoted) if quoted else self.dtype()
        self.need(")")
        return value.to(target)

    def dtype(self) -> torch.dtype:
        """Read `float16` or `torch.float16`."""
        start = self.at
        words = [self.match(WORD) or ""]
        while self.take("."):
            words.append(self.match(WORD) or "")
        found = vars(torch).get(words[-1])
        if not isinstance(found, torch.dtype) or words[:-1] not in ([], ["torch"]):
            shown = short(".".join(words)) or self.shown()
            self.fail(
                ".to takes a dtype or a device.", found=shown, expected='float16, or "cuda:0" in quotes', at=start
            )
        return found

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Read `(value, name=value, ...)`."""
        positional, named = list[Any](), dict[str, Any]()
        self.need("(")
        while not self.take(")"):
            keyword = (self.match(_KEYWORD) or "").rstrip("=").rstrip()
            if keyword in named:
                self.fail("An argument is given twice.", found=short(keyword), expected="each argument once")
            if keyword:
                named[keyword] = self.sum()
            else:
                positional.append(self.sum())
            if self.skip() != ")":
                self.need(",")
        return positional, named

    def items(self) -> Any:
        """Read what stands between [ and ]: slices, integers, `...`, `None`, or one expression."""
        items = [self.item()]
        while self.take(",") and self.skip() != "]":
            items.append(self.item())
        self.need("]")
        return items[0] if len(items) == 1 else tuple(items)

    def item(self) -> Any:
        """Read one item of a subscript."""
        if self.match(_ELLIPSIS):
            return Ellipsis
        if self.skip() in ("]", ",", ""):
            self.fail("An index is missing.", found=self.shown(), expected="a whole number, a slice, or an address")
        bounds = [self.bound()]
        while len(bounds) < 3 and self.take(":"):
            bounds.append(self.bound())
        return bounds[0] if len(bounds) == 1 else slice(*bounds)

    def bound(self) -> Any:
        """Read one end of a slice, which may be left out."""
        return None if self.skip() in (":", "]", ",") or self.match(_NONE) else self.sum()


_KEYWORD = re.compile(r"[a-zA-Z_]\w*\s*=(?!=)")
_ELLIPSIS = re.compile(r"\.\.\.")
_NONE = re.compile(r"None\b(?!\s*[.\[])")
_USAGE = {"cat": "cat([a, b], dim)", "stack": "stack([a, b], dim)", "kron": "kron(a, b)"}


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "@": operator.matmul,
}
_EXPRESSION, _NUMBER, _LIST = "an expression", "a number", "a list"
_FITTING = {
    "*": [(_NUMBER, _EXPRESSION), (_EXPRESSION, _NUMBER), (_LIST, _EXPRESSION), (_EXPRESSION, _LIST)],
    "/": [(_EXPRESSION, _NUMBER)],
}
_WANTED = {"*": "an expression beside it", "/": "an expression / a number"}


def _kind(value: Any) -> str:
    if isinstance(value, Expression):
        return _EXPRESSION
    return _NUMBER if isinstance(value, int | float) else _LIST
