"""Torch's functions and methods, answered by expressions: `torch.cat([a, b])`, `torch.exp(a)`, `a.flip(0)`.

Owns: which name of torch is which transform. Must not hold a transform itself. Read next: `expression.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tied.algebra.transform import FORMS, METHODS
from tied.errors import KindError, TieError, TransformError, nearest, short


def unknown(expression: object, name: str) -> TransformError:
    """Return the error for `expression.name`, which is no transform; it names the nearest one."""
    near = nearest(name, METHODS)
    return TransformError(
        f"'{short(name)}' is not a transform of the language.",
        found=f"{short(str(expression))}.{short(name)}",
        expected="one of the transforms in the documentation, such as .T, .reshape(...) or .exp()",
        fix=f"did you mean {near}?" if near else "read values from the model itself; an expression has none yet",
    )


def answer(owner: type, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a torch function gives for expressions; `owner` is their class.

    Raises:
        KindError: the function is no transform of the language, or a tensor is among its arguments.
    """
    name: str = function.__name__
    builder = FORMS.get(name) or getattr(owner, name, None)
    if builder is None:
        raise KindError(
            f"torch.{name} is not a transform of the language.",
            found=f"torch.{name}(...)",
            expected="one of the transforms in the documentation, such as .T or torch.cat",
            fix="compute it from parameters of its own: a parametrization, or a module",
        )
    for arg in args:
        _refuse_tensors(arg if isinstance(arg, list | tuple) else [arg])
    try:
        return builder(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        if isinstance(error, TieError):
            raise
        raise KindError(
            f"torch.{name} cannot be applied to these arguments.",
            found=f"torch.{name}({', '.join([*(type(arg).__name__ for arg in args), *kwargs])})",
            expected="an expression first, then what the method of that name takes",
            fix="call the method, such as e.flip(0), or an operator, such as 2 * e",
        ) from error


def _refuse_tensors(args: Sequence[Any]) -> None:
    for arg in args:
        if isinstance(arg, Tensor):
            raise KindError(
                "A tensor cannot stand in an expression, which is pure data.",
                found=type(arg).__name__,
                expected="expressions, numbers, and lists of numbers",
                fix="register constants as buffers of the model and use their address",
            )
