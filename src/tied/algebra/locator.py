"""The locator: reads addresses, as far as a model has names for them.

Owns: where an address ends and its transforms begin. Must not read operators. Read next: `parser.py`.

Given the tree of a model, an address takes as many segments as the model has, so that a submodule
named `T` or `flip` is found; without one, it ends before the first name of a transform.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import NoReturn, Protocol

from tied.algebra.address import WORD, Address, show_address
from tied.algebra.expression import Ref
from tied.algebra.scanner import Scanner
from tied.algebra.transform import METHODS
from tied.errors import AddressError, nearest

ATTRIBUTES = ("T", "mT")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_BRACKET = re.compile(rf"\[\s*(-?\d+|{STRING.pattern})\s*\]")
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


class Locator(Scanner):
    """A cursor that reads addresses; `tree` settles where they end."""

    def __init__(self, text: str, tree: Tree | None) -> None:
        """Read `text` against `tree`."""
        super().__init__(text)
        self.tree = tree

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
            name = unquote(_BRACKET.match(bracket).group(1))  # type: ignore[union-attr]
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
            word = unquote(_BRACKET.match(bracket).group(1)) if bracket else self.match(WORD)  # type: ignore[union-attr]
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
