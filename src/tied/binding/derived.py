"""Derived tensors: values of ties that are computed, in which an in-place write must not vanish.

Owns: `Derived`, what a target reads as when its value is no view of the source's memory. A write into it goes
through the right inverse into the source, or is refused. Must not change modules. Read next: `link.py`.

    nn.init.zeros_(model.head.weight)      # head.weight = 2 * embed.weight: writes embed.weight
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tied.errors import WriteError

Write = Callable[[Tensor], None]


class Derived(Tensor):
    """A computed weight: a plain tensor, except that in-place writes reach the source or raise.

    Results of operations on it are plain tensors. A write through a view of it (`w[0].zero_()`) or by
    `out=` is not seen.
    """

    _write: Write
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def plain(self) -> Tensor:
        """The same memory as a plain tensor."""
        return self.as_subclass(Tensor)

    @property
    def data(self) -> Tensor:
        """The value without a graph; writing to it writes to the source."""
        return derive(self.plain.detach(), self._write)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._write(value)

    def detach(self) -> Tensor:
        """Return the value without a graph; writing to it writes to the source."""
        return derive(self.plain.detach(), self._write)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor."""
        return self.plain.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy as a plain tensor."""
        return self.plain.__deepcopy__(memo)


def derive(value: Tensor, write: Write) -> Tensor:
    """Return `value` as a derived tensor, except where Python cannot see writes anyway (tracing)."""
    if type(value) is not Tensor or torch.compiler.is_compiling() or torch._C._is_tracing():
        return value
    derived = value.as_subclass(Derived)
    derived._write = write
    return derived


def _writing(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def write(self: Derived, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and self.requires_grad:
            raise WriteError(
                f"A tied weight that is computed cannot be changed by .{name}() where gradients are recorded.",
                found="an in-place write to a tensor that a tie computes",
                expected="a write under torch.no_grad(), which reaches the source",
                fix="with torch.no_grad(): ... or write to the source",
            )
        result = method(self.plain, *args, **kwargs)
        self._write(self.plain.detach())
        return self if isinstance(result, Tensor) else result

    write.__name__, write.__doc__ = name, f"Do `{name}`, and write the result to the source."
    return write


_KEPT = {"requires_grad_", "share_memory_", "rename_", "detach_", "retain_grad", "resize_", "resize_as_", "set_"}


def _install_writing_methods() -> None:
    for name in dir(Tensor):
        operator = (
            name.startswith("__i") and hasattr(Tensor, "__" + name[3:]) and name not in ("__init__", "__invert__")
        )
        method = name.endswith("_") and not name.startswith("_") and name not in _KEPT
        if (operator or method or name == "__setitem__") and callable(getattr(Tensor, name)):
            setattr(Derived, name, _writing(name))


_install_writing_methods()
