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
import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch

from tied.algebra.address import NUMBER, WORD, Address
from tied.algebra.arithmetic import kron
from tied.algebra.assembly import cat, stack
from tied.algebra.expression import Expression, Ref
from tied.algebra.locator import ATTRIBUTES, STRING, Locator, Tree, unquote
from tied.algebra.transform import METHODS
from tied.errors import TieError, nearest

MOST_DEPTH = 64
FUNCTIONS: dict[str, Callable[..., Expression]] = {"cat": cat, "stack": stack, "kron": kron}


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


class _Parser(Locator):
    """A cursor over one text; each method reads one rule and leaves the cursor behind it."""

    depth = 0

    def whole(self, rule: Callable[[], Any]) -> Any:
        """Read the whole text by one rule; it must be an expression or an address."""
        result = rule()
        if self.skip():
            self.fail("The text goes on where it should end.", found=self.shown(), expected="the end, or an operator")
        if not isinstance(result, Expression | tuple):
            self.fail(
                "This names no tensor.", found=f"the constant {self.source.strip()[:40]}", expected="an address", at=0
            )
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
        start = self.at
        try:
            if isinstance(left, Expression) or isinstance(right, Expression):
                return _operate(sign, left, right)
            if isinstance(left, int | float) and isinstance(right, int | float):
                return _fold(sign, left, right)
        except TieError:
            raise
        except (TypeError, ArithmeticError) as error:
            self.fail(
                "These do not go together.", found=str(error) or type(error).__name__, expected="numbers", at=start
            )
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
        target = unquote(quoted) if quoted else self.dtype()
        self.need(")")
        return value.to(target)

    def dtype(self) -> torch.dtype:
        """Read `float16` or `torch.float16`."""
        words = [self.match(WORD) or ""]
        while self.take("."):
            words.append(self.match(WORD) or "")
        found = getattr(torch, words[-1], None)
        if not isinstance(found, torch.dtype) or words[:-1] not in ([], ["torch"]):
            shown = ".".join(words)
            self.fail(".to takes a dtype or a device.", found=shown, expected='float16, or "cuda:0" in quotes')
        return found

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


_KEYWORD = re.compile(r"[a-zA-Z_]\w*\s*=(?!=)")
_ELLIPSIS = re.compile(r"\.\.\.")
_NONE = re.compile(r"None\b")
_USAGE = {"cat": "cat([a, b], dim)", "stack": "stack([a, b], dim)", "kron": "kron(a, b)"}


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
    value = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[sign]()
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ArithmeticError("the number is too large")
    return value
