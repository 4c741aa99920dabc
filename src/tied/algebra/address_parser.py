"""The locator: reads addresses, as far as a model has names for them.

Owns: where an address ends and its transforms begin. Must not read operators. Read next: `parser.py`.

Given the tree of a model, an address takes as many segments as the model has, so that a submodule
named `T` or `flip` is found; without one, it ends before the first name of a transform.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import NoReturn, Protocol

from tied.algebra.address import STRING, WORD, Address, address_of, show_address
from tied.algebra.expression import Ref
from tied.algebra.transform import ATTRIBUTES, METHODS
from tied.errors import AddressError, ParseError, nearest, short

MOST_CHARACTERS = 100_000
SPACE = re.compile(r"\s*")
_BRACKET = re.compile(rf"\[\s*(-?[0-9]+|{STRING.pattern})\s*\]")
_SELECTED = re.compile(r"\s*[.\[]")
_END = re.compile(r"\s*\Z")
_DOTTED = re.compile(r"\s*\.\s*(\w+)")


class Tree(Protocol):
    """What the parser asks of a model."""

    @property
    def title(self) -> str:
        """The model's name in messages."""
        ...

    def names(self, address: Address) -> Collection[str] | None:
        """Return the names directly under the module at `address`; None where no module is."""
        ...


def named(text: str, tree: Tree | None) -> Address | None:
    """Return the address of what a model knows by exactly this name, as torch writes names: `en-de.weight`."""
    address = address_of(text.strip())
    known = tree is not None and all(name in (tree.names(address[:at]) or ()) for at, name in enumerate(address))
    return address if known and address else None


class Scanner:
    """A cursor over one text."""

    def __init__(self, text: str) -> None:
        """Start at the beginning of `text`."""
        self.source, self.at = text, 0
        if len(text) > MOST_CHARACTERS:
            self.fail("The text is too long.", found=f"{len(text)} characters", expected=f"at most {MOST_CHARACTERS}")

    def fail(self, problem: str, *, found: str, expected: str, at: int | None = None) -> NoReturn:
        """Raise with the position, which is that of the cursor unless `at` moves it."""
        self.at = self.at if at is None else at
        raise ParseError(
            problem,
            found=f"{found}, {self.place()}",
            expected=expected,
            fix="write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'",
        )

    def place(self) -> str:
        """Name the position of the cursor and its surroundings."""
        near = self.source[max(0, self.at - 20) : self.at + 20]
        return f"at position {self.at + 1} of '{near if len(self.source) > 60 else self.source}'"

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


class Locator(Scanner):
    """A cursor that reads addresses; `tree` settles where they end."""

    def __init__(self, text: str, tree: Tree | None) -> None:
        """Read `text` against `tree`."""
        super().__init__(text)
        self.tree = tree

    def is_child(self, start: int, end: int) -> bool:
        """Tell whether the number from `start` to `end` is a child of the model, as in a ModuleList.

        It is where something of it is selected, and where it stands alone; elsewhere it is a constant.
        """
        if _SELECTED.match(self.source, end):
            return True
        alone = _END.match(self.source, end) and not self.source[:start].strip()
        return bool(alone) and self.tree is not None and any(map(str.isdigit, self.tree.names(()) or ()))

    def quoted_ahead(self) -> bool:
        """Tell whether a quoted segment `["..."]` comes next, or an index of a list given as the model."""
        after = _BRACKET.match(self.source, self.at)
        return bool(after) and (after.group(1)[0] in "\"'" or self.is_child(self.at, after.end()))

    def address(self) -> Ref:
        """Read as many segments as belong to the address."""
        start = self.at
        address = list[str]()
        while True:
            before = self.at
            segment = self.segment(address)
            if segment is None:
                self.at = before
                break
            address.append(segment)
        if not address:
            self.at = start
            self.fail("An address is missing.", found=self.shown(), expected="an address such as 'encoder.weight'")
        return Ref(tuple(address))

    def segment(self, address: Sequence[str]) -> str | None:
        """Read the next segment of an address; None where a transform or an operator comes."""
        names = self.tree.names(tuple(address)) if self.tree else None
        bracket = self.bracket()
        if bracket is None and address and not self.take("."):
            return None
        name = self.match(WORD) if bracket is None else unquote(bracket)
        if not name:
            return None
        quoted = bracket is not None and bracket[0] in "\"'"
        if names is None:
            return self.bare_segment(name, bracket is not None, quoted, bool(address))
        return self.child(tuple(address), name, names, bracket is not None and not quoted)

    def bracket(self) -> str | None:
        """Step over `[0]` or `["name"]` if it comes next, and return what stands inside."""
        found = self.match(_BRACKET)
        return found[1:-1].strip() if found else None

    def child(self, address: Address, name: str, names: Collection[str], is_index: bool) -> str | None:
        """Return the child that `name` means; None where it can be a transform instead."""
        if is_index and name.startswith("-"):
            numbers = sorted((other for other in names if other.isdigit()), key=lambda other: (len(other), other))
            name = next((other for back, other in enumerate(reversed(numbers), 1) if f"-{back}" == name), name)
        if name in names:
            return name
        if not address or name not in METHODS:
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
        return None if inside and not quoted and called else name

    def bare_address(self) -> Address:
        """Read an address that stands alone, so that every segment belongs to it."""
        segments = list[str]()
        while self.skip():
            bracket = self.bracket()
            if not bracket and segments:
                self.need(".")
            word = unquote(bracket) if bracket else self.match(WORD)
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
        whole = short(show_address((*address, name)) + (rest.group() if rest else ""))
        near = nearest(name, names)
        owner = f"'{show_address(address)}'" if address else "the model"
        some = "', '".join(sorted(names)[:5])
        raise AddressError(
            f"'{whole}' is not a parameter, buffer or module of {self.tree.title}.",
            found=f"{owner} has no '{short(name)}'",
            expected=f"one of '{some}'{' ...' if len(names) > 5 else ''}" if names else "a name (it has none)",
            fix=f"did you mean {near}?" if near else "list the names with dict(model.named_parameters())",
        )


def unquote(text: str) -> str:
    """Return what a quoted text means; other texts as they are."""
    if text[0] == "'":
        text = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
    if text[0] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text[1:-1]
