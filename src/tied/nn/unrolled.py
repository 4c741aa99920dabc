"""A cell unrolled over time: one step, taken at every moment.

Owns: `Unrolled`. Read next: `looped.py`, which does the same over depth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tied.errors import KindError, ShapeError, during


class Unrolled(nn.Module):
    """A recurrent network made of any cell: the same weights at every moment.

    Law: `state_t = cell(inputs_t, state_(t-1))`; the output at `t` is the state, or the first entry of a state
    that is a tuple. With torch's cells it equals `nn.RNN`, `nn.GRU` and `nn.LSTM` of one layer, up to rounding.

    Shapes:
        inputs: `(time, batch, ...)`, or `(batch, time, ...)` with `batch_first`.
        outputs: the same first two axes, then those of the cell's output.

    Args:
        cell: Maps an input and a state to the next state; it must know what a state of `None` means.
        batch_first: Whether time is the second axis.

    Raises:
        KindError: `cell` is no module.

    Example:
        >>> network = Unrolled(nn.LSTMCell(3, 5), batch_first=True)
        >>> outputs, (hidden, memory) = network(torch.zeros(2, 7, 3))
        >>> outputs.shape, torch.equal(outputs[:, -1], hidden)
        (torch.Size([2, 7, 5]), True)

    Source:
        Rumelhart, Hinton & Williams 1986, Nature 323 (a recurrent net is a deep one with tied weights).
    """

    def __init__(self, cell: nn.Module, *, batch_first: bool = False) -> None:
        super().__init__()
        with during(f"Unrolled({type(cell).__name__})"):
            if not isinstance(cell, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise KindError(
                    "The cell is not a module.",
                    found=type(cell).__name__,
                    expected="an nn.Module that maps (input, state) to the next state",
                    fix="Unrolled(nn.GRUCell(16, 32))",
                )
        self.cell, self.batch_first = cell, batch_first

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs of all moments, and the last state.

        Args:
            inputs: One entry for each moment.
            state: Before the first moment; `None` for the cell's own start.

        Raises:
            ShapeError: there is no moment at all.
        """
        axis = 1 if self.batch_first else 0
        if inputs.dim() <= axis or not inputs.shape[axis]:
            with during("Unrolled.forward(inputs)"):
                raise ShapeError(
                    "The inputs have no moment.",
                    found=f"shape {tuple(inputs.shape)}",
                    expected=f"at least one entry along axis {axis}, which is time",
                    fix=f"inputs.unsqueeze({axis}) for a single moment",
                )
        outputs: list[Tensor] = []
        for moment in inputs.unbind(axis):
            state = self.cell(moment, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, axis), state

    def extra_repr(self) -> str:
        """Show the options."""
        return f"batch_first={self.batch_first}"
