"""The line that everyone tries first, made to work: `m.decoder.weight = m.encoder.weight.T`.

Owns: the stand-ins for a model and its modules that record assignments. Must not check or act: that is
`tie.py`'s, once, at the end of the block.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tied.algebra import Address, Expression, Ref, show_address
from tied.binding.equations import pair
from tied.binding.followers.optimizers import Optimizers
from tied.binding.slots import ModuleTree
from tied.binding.tie import Keep, declare, unwrapped
from tied.errors import AddressError, KindError, during, nearest
from tied.ledger import Tie


class Draft:
    """A module of the model as seen inside `tying`: reading gives expressions, assigning declares ties."""

    def __init__(self, tree: ModuleTree, address: Address, declared: list[tuple[str, Expression]]) -> None:
        """Stand for the module at `address`."""
        self.__dict__.update(_tree=tree, _address=address, _declared=declared, _seen=False)

    def __getattr__(self, name: str) -> Any:
        """Return a stand-in for a child module, or the expression that reads a tensor."""
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__["_seen"] = True
        address = (*self._address, name)
        names = self._tree.names(self._address) or ()
        if name not in names:
            raise _no_such(self._tree, self._address, name)
        is_module = self._tree.slot(address).kind == "module"
        return Draft(self._tree, address, self._declared) if is_module else Ref(address)

    def __setattr__(self, name: str, value: Any) -> None:
        """Declare a tie of an attribute."""
        address = (*self._address, name)
        if name not in (self._tree.names(self._address) or ()):
            raise _no_such(self._tree, self._address, name)
        if isinstance(value, Draft):
            value = Ref(value._address)
        if not isinstance(value, Expression):
            raise KindError(
                f"'{show_address(address)}' can only be assigned an expression here.",
                found=type(value).__name__,
                expected="what comes from the same stand-in, such as m.encoder.weight.T",
                fix="assign tensors to the model itself, outside of tying",
            )
        self._declared.append((show_address(address), value))

    def __getitem__(self, key: int | str | slice) -> Any:
        """Return a child of a list or dict of modules; a list of them for a slice."""
        names = list(self._tree.names(self._address) or ())
        if isinstance(key, slice):
            return [self[name] for name in names[key]]
        if isinstance(key, int) and -len(names) <= key < len(names):
            key = names[key]
        return getattr(self, str(key))

    def __setitem__(self, key: int | str, value: Any) -> None:
        """Declare a tie of a child of a list or dict."""
        names = list(self._tree.names(self._address) or ())
        setattr(self, names[key] if isinstance(key, int) and -len(names) <= key < len(names) else str(key), value)

    def __iter__(self) -> Iterator[Any]:
        """Yield the children."""
        return (self[name] for name in self._tree.names(self._address) or ())

    def __len__(self) -> int:
        """Return how many children there are."""
        return len(self._tree.names(self._address) or ())

    def __dir__(self) -> list[str]:
        """List the module's tensors and children, for whoever presses Tab."""
        return sorted(self._tree.names(self._address) or ())

    def __repr__(self) -> str:
        """Show which module this stands for."""
        return f"<{show_address(self._address)} of {self._tree.title}, in tied.tying>"


def _no_such(tree: ModuleTree, address: Address, name: str) -> AddressError:
    names = tree.names(address) or ()
    near = nearest(name, names)
    return AddressError(
        f"'{show_address((*address, name))}' is not a parameter, buffer or module of {tree.title}.",
        found=f"no '{name}' there",
        expected=near or f"one of {', '.join(map(repr, sorted(names)[:5]))}",
        fix=f"did you mean {near}?" if near else "list the names with dict(model.named_parameters())",
    )


@contextmanager
def tying(model: nn.Module, *, keep: Keep = "source", buffers: bool = False, optimizer: Any = None) -> Generator[Any]:
    """Declare ties by assignment; all of them take effect together at the end of the block.

    None takes effect if one of them fails, or if the block itself raises.

    Args:
        model: Changed in place at the end of the block.
        keep: As in `tie`.
        buffers: As in `tie`.
        optimizer: As in `tie`.

    Yields:
        A stand-in for the model: attributes read as expressions, with torch's method names.

    Example:
        >>> from tied import ties
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> with tying(model) as m:
        ...     m.decoder.weight = m.encoder.weight.T
        >>> ties(model)
        (Tie('decoder.weight = encoder.weight.T'),)
    """
    with during("tying(model)"):
        model = unwrapped(model)
        declared: list[tuple[str, Expression]] = []
        draft = Draft(ModuleTree(model), (), declared)
        yield draft
        if not draft.__dict__["_seen"] and not declared:
            raise KindError(
                "Nothing was declared: the block did not use its stand-in for the model.",
                found="a block that assigns to the model itself, or to nothing",
                expected="assignments to the stand-in",
                fix="with tied.tying(model) as m: m.decoder.weight = m.encoder.weight.T",
            )
        wanted: list[Tie] = [tie for target, source in declared for tie in pair(model, target, source, buffers)]
        if wanted:
            declare(model, wanted, Optimizers(optimizer, model), keep=keep, buffers=buffers)
