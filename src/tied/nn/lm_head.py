"""A language-model head: scores of words and their cross-entropy, from hidden states and a table.

Owns: what the scores and the loss are, in plain torch, and when the loss is computed in chunks.
Must not know where the table comes from. Read next: `cross_entropy.py` for the chunks, `embedding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from tied.nn.accumulate import PLAIN, first_rows, gathered_linear, gathering_of, gathers, is_transformed
from tied.nn.cross_entropy import LossRule, Task, chunked_cross_entropy

FEWEST_SCORES = 2**18  # below, the plain loss is as fast


@dataclass(frozen=True)
class Head:
    """What a head computes with, and what it does beside the product."""

    table: Tensor
    bias: Tensor | None
    scale: float = 1.0
    soft_cap: float | None = None
    dtype: torch.dtype | None = None
    frozen_row: int | None = None

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the scores of all words, `(..., words)`, for hidden states `(..., width)`."""
        table, bias = self._trained(), self.bias
        if self.dtype is None:
            return self._capped(gathered_linear(hidden * self.scale if self.scale != 1 else hidden, table, bias))
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if bias is None else bias.to(self.dtype)
            product = functional.linear(hidden.to(self.dtype) * self.scale, table.to(self.dtype), bias)
        return self._capped(product)

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)

    def _trained(self) -> Tensor:
        """Return the table, whose frozen row gets no gradient."""
        if self.frozen_row is None or not (self.table.requires_grad and torch.is_grad_enabled()):
            return self.table
        before, row, after = self.table.tensor_split((self.frozen_row, self.frozen_row + 1))
        return torch.cat((before, row.detach(), after))

    def loss(self, hidden: Tensor, targets: Tensor, rule: LossRule) -> Tensor:
        """Return the cross-entropy of the scores of `(tokens, width)` for targets `(tokens,)`."""
        if not self._pays_in_chunks(hidden, targets, rule):
            return rule.of(self.scores(hidden), targets)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = self.dtype or (torch.get_autocast_dtype(device) if autocast else self.table.dtype)
        task = Task(rule, len(self.table), dtype, self.scale, self.soft_cap, self.frozen_row)

        def plain(hidden: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
            head = replace(self, table=first_rows(table, task.words), bias=bias, dtype=dtype)
            return rule.of(head.scores(hidden).to(task.precision), targets)

        leaf = _leaf_of(self.table)
        gathering, table = gathering_of(leaf) if gathers(leaf) else (None, self.table)
        with torch.autocast(device, enabled=False):
            found = chunked_cross_entropy(task, (hidden, table, self.bias), targets, plain, gathering)
        return found if autocast else found.to(dtype)

    def _pays_in_chunks(self, hidden: Tensor, targets: Tensor, rule: LossRule) -> bool:
        """Tell whether chunks are worth it, and known to be right; everything else is left to torch."""
        tensors = [tensor for tensor in (hidden, self.table, self.bias) if tensor is not None]
        casts = self.dtype is not None or torch.is_autocast_enabled(hidden.device.type)
        return (
            not is_transformed()
            and len(hidden) * len(self.table) >= FEWEST_SCORES
            and targets.dtype is torch.int64
            and 0 <= rule.label_smoothing <= 1
            and rule.reduction in ("mean", "sum", "none")
            and all(_is_ordinary(tensor, targets.device) for tensor in tensors)
            and (casts or all(tensor.dtype is hidden.dtype for tensor in tensors))
        )


def _leaf_of(table: Tensor) -> Tensor:
    """Return the Parameter whose first rows `table` is, or `table` itself."""
    whole = table._base
    if whole is None or whole.dim() != 2 or whole.requires_grad != table.requires_grad:
        return table
    starts = whole.data_ptr() == table.data_ptr() and whole.dtype is table.dtype
    return whole if starts and whole.stride() == table.stride() and whole.shape[1] == table.shape[1] else table


def _is_ordinary(tensor: Tensor, device: torch.device) -> bool:
    kind = type(tensor) in PLAIN and tensor.layout is torch.strided
    return kind and tensor.device == device and tensor.is_floating_point() and device.type in ("cpu", "cuda")
