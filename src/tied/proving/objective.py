"""Objectives: what a model is run on, and the number that training makes small.

Owns: calling a model on a user's inputs, and the default loss. Must not train. Read next: `verify.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tied.errors import KindError

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss of a model on given inputs.

    The inputs are the arguments of the model; one mapping alone holds arguments by name. `loss` gets the output;
    where there are no inputs, it gets the model, and runs it as it likes. Without a loss it is `default_loss`.

    Attributes:
        inputs: Copied for each call.
        loss: A function, or None.
        dtype: Of the real numbers in the inputs; None leaves them as they are.
        reason: Why that is not float64; "" where it is.
        originals: By name, the tensors of the model itself, which no copy may compute with.
    """

    inputs: tuple[Any, ...]
    loss: Loss | None = None
    dtype: torch.dtype | None = torch.float64
    reason: str = ""
    originals: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be called: a loss is computed anew at each step."""
        if self.loss is not None and not callable(self.loss):
            raise KindError(
                "The loss is no function, and it is computed anew at each step.",
                found=_described(self.loss),
                expected="a function: of the output in tied.verify, of the model in tied.tension",
                fix="loss=lambda output: output.square().mean(); in tension lambda model: model(x).square().mean()",
            )

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss: one finite real number with a gradient."""
        return _checked(self._loss(model))

    def _loss(self, model: nn.Module) -> Any:
        if not self.inputs:
            if self.loss is None:
                raise _wrong("There is nothing to run the model on.", found="neither inputs nor a loss")
            return self.loss(model)
        inputs = [fresh(value, self.dtype) for value in self.inputs]
        named = len(inputs) == 1 and isinstance(inputs[0], Mapping)
        output = model(**inputs[0]) if named else model(*inputs)
        return default_loss(output) if self.loss is None else self.loss(output)


def default_loss(output: Any) -> Tensor:
    """Return a number that depends on all of an output.

    It is `output.loss` where there is one, as with transformers' models that are given labels; else the mean
    squared distance of every tensor of real numbers in the output to fixed random numbers, summed. (Not to
    zero: behind a layer norm the mean square is a constant, and has no gradient.)

    Raises:
        KindError: nothing in the output has a gradient.
    """
    found = getattr(output, "loss", None)
    if isinstance(found, Tensor):
        return found
    tensors = [tensor for tensor in _tensors(output) if tensor.requires_grad]
    if not tensors:
        raise _wrong("Nothing in the model's output has a gradient.", found=type(output).__name__)
    return torch.stack([_distance(tensor) for tensor in tensors]).sum()


def _distance(tensor: Tensor) -> Tensor:
    dice = torch.Generator().manual_seed(tensor.numel())
    goal = torch.randn(tensor.shape, generator=dice, dtype=torch.float64).to(tensor.device, tensor.dtype)
    return (tensor - goal).square().mean()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | Sequence) and not isinstance(output, str):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def fresh(value: Any, dtype: torch.dtype | None) -> Any:
    """Copy the tensors of an input, real numbers in `dtype` if there is one, so that a model may write to them."""
    if isinstance(value, Mapping):
        return {name: fresh(item, dtype) for name, item in value.items()}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        return leaf.detach().to(wanted, copy=True).requires_grad_(leaf.requires_grad)

    return tree_map(copied, value)


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise _wrong("The loss is not one real number.", found=_described(loss))
    if not loss.requires_grad:
        raise _wrong("The loss does not depend on any parameter that is trained.", found="no gradient")
    if not bool(torch.isfinite(loss)):
        raise _wrong("The loss is not finite, so that nothing can be compared.", found=str(loss.item()))
    return loss.reshape(())


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _wrong(problem: str, *, found: str) -> KindError:
    return KindError(
        problem,
        found=found,
        expected="a finite number with a gradient",
        fix="name inputs and a loss: tied.verify(model, x, loss=lambda output: (output - y).square().mean())",
    )
