"""What a Parameter is beside its values: its class, and what others have written on it (`no_decay`, flags).

Owns: remembering that over a tie, for the Parameter that an untie makes. Must not hold a tensor, which would keep
memory that the tie has freed. Read next: `binding/untie.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True)
class Marks:
    """The class of a Parameter and its attributes, without tensors."""

    kind: type[Tensor] = Parameter
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, tensor: Tensor) -> Marks:
        """Read the marks of a Parameter; a class that computes in a way of its own is left to its owner."""
        kind = type(tensor)
        above = kind.__mro__[: kind.__mro__.index(Parameter)] if issubclass(kind, Parameter) else ()
        plain = bool(above) and not any("__torch_dispatch__" in vars(each) for each in above)
        attributes = {name: value for name, value in vars(tensor).items() if not isinstance(value, Tensor)}
        return cls(kind if plain else Parameter, attributes)

    def parameter(self, value: Tensor, *, requires_grad: bool) -> Tensor:
        """Return a Parameter over `value` with these marks."""
        if self.kind is Parameter:
            made: Tensor = Parameter(value, requires_grad=requires_grad)
        else:
            made = torch.Tensor._make_subclass(self.kind, value, requires_grad)
        vars(made).update(copy.copy(self.attributes))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as torch pickles a Parameter: with its attributes, and without a class of its own."""
        return type(self), (Parameter, self.attributes)
