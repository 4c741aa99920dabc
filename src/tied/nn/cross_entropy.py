"""Cross-entropy over a large vocabulary, in chunks of tokens, with the gradients made on the way.

Owns: the chunked computation and its autograd node. Must not decide when it is used, and must compute what
`head.py` writes plainly. Read next: `head.py`.

The scores of all tokens are by far the largest tensor of a language model. Here a chunk of tokens is scored, its
loss is taken, and the same memory is turned into the gradient of the scores, which goes into the gradients of
the hidden states and of the table before the next chunk takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tied.nn.accumulate import Gathering, first_rows, is_ordinary_backward

SMALLEST_CHUNK, LARGEST_CHUNK = 64, 1024  # tokens

Flags = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Plain = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class LossRule:
    """What `F.cross_entropy` is told beside scores and targets."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: str = "mean"

    def of(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss in plain torch."""
        return functional.cross_entropy(
            scores,
            targets,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


@dataclass(frozen=True)
class Task:
    """All that is not a tensor: how scores are made of hidden states and a table, and the loss of scores."""

    rule: LossRule
    words: int  # rows of the table that are scored; what follows them is padding
    dtype: torch.dtype  # of the products
    scale: float
    soft_cap: float | None
    frozen_row: int | None

    @property
    def precision(self) -> torch.dtype:
        """The dtype of losses and sums: at least single."""
        return torch.promote_types(self.dtype, torch.float32)

    def shares(self, targets: Tensor) -> Tensor:
        """Return what each token's loss counts in the whole: 0 where ignored."""
        counts = (targets != self.rule.ignore_index).to(self.precision)
        return counts / counts.sum().clamp(min=1) if self.rule.reduction == "mean" else counts

    def reduce(self, losses: Tensor, targets: Tensor) -> Tensor:
        """Reduce the losses of the tokens as torch does: a mean over nothing is not a number."""
        if self.rule.reduction == "none":
            return losses
        total = losses.sum()
        return total if self.rule.reduction == "sum" else total / (targets != self.rule.ignore_index).sum()


class Pass:
    """One walk over all chunks, for the losses and the gradients of `sum(shares * losses)`.

    Shapes:
        hidden: `(tokens, width)`; table: `(rows, width)`; bias: `(words,)`; targets and shares: `(tokens,)`.
    """

    def __init__(self, task: Task, hidden: Tensor, table: Tensor, bias: Tensor | None) -> None:
        self.task, self.hidden, self.table, self.bias = task, hidden, table, bias
        self.matrix = first_rows(table, task.words).to(task.dtype)
        self.offset = None if bias is None else bias.to(task.dtype)
        self.of_hidden: Tensor | None = None
        self.of_table: Tensor | None = None
        self.of_bias: Tensor | None = None

    def run(self, targets: Tensor, shares: Tensor, wanted: Flags) -> Tensor:
        """Return the loss of each token, 0 where it is ignored; make the wanted gradients."""
        task = self.task
        counted = targets != task.rule.ignore_index
        self._make_room(wanted)
        losses = torch.zeros_like(shares)
        words = _in_range(torch.where(counted, targets, 0), task.words)
        memory = self.hidden.new_empty(self._chunk_size(), task.words, dtype=task.dtype)
        for chunk in self._chunks():
            inputs = self.hidden[chunk].to(task.dtype)
            inputs = inputs if task.scale == 1 else inputs * task.scale
            scores, slope = self._scores(inputs, memory[: len(inputs)])
            losses[chunk] = _turn(scores, words[chunk], shares[chunk], task.rule.label_smoothing)
            if any(wanted):
                self._collect(scores if slope is None else scores.mul_(slope), inputs, chunk)
        self._finish()
        return losses.masked_fill_(~counted, 0)

    def gradients(self) -> Gradients:
        """Return the gradients of hidden states, table and bias, where wanted."""
        return self.of_hidden, self.of_table, self.of_bias

    def _chunk_size(self) -> int:
        """The scores of one chunk take about half the memory of the table."""
        tokens, width = self.hidden.shape
        return min(tokens, max(SMALLEST_CHUNK, min(LARGEST_CHUNK, width // 2)))

    def _chunks(self) -> Iterator[slice]:
        tokens, size = len(self.hidden), self._chunk_size()
        return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))

    def _make_room(self, wanted: Flags) -> None:
        for_hidden, for_table, for_bias = wanted
        precision = self.task.precision
        if for_hidden:
            self.of_hidden = torch.empty_like(self.hidden, memory_format=torch.contiguous_format)
        if for_table:
            self.of_table = torch.zeros(self.table.shape, dtype=precision, device=self.table.device)
        if for_bias and self.bias is not None:
            self.of_bias = torch.zeros(self.bias.shape, dtype=precision, device=self.bias.device)

    def _scores(self, inputs: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scores of a chunk, and what the soft cap multiplies their gradient by."""
        task = self.task
        if self.offset is None:
            torch.mm(inputs, self.matrix.t(), out=out)
        else:
            torch.addmm(self.offset, inputs, self.matrix.t(), out=out)
        if task.soft_cap is None:
            return out.to(task.precision), None
        scores = out.div_(task.soft_cap).tanh_().to(task.precision)
        slope = 1 - scores.square()
        return scores.mul_(task.soft_cap), slope

    def _collect(self, slopes: Tensor, inputs: Tensor, chunk: slice) -> None:
        """Add the gradient of a chunk's scores to the gradients of what the scores are made of."""
        if self.of_bias is not None:
            self.of_bias += slopes.sum(0)
        slopes = slopes.to(self.task.dtype)
        if self.of_hidden is not None:
            self.of_hidden[chunk] = slopes @ self.matrix
        if self.of_table is None:
            return
        total = self.of_table[: self.task.words]
        if total.dtype is slopes.dtype:
            total.addmm_(slopes.t(), inputs)
        else:
            total += slopes.t() @ inputs

    def _finish(self) -> None:
        """Scale the gradients, freeze the frozen row, and give all of them the dtypes that they belong to."""
        if self.of_hidden is not None and self.task.scale != 1:
            self.of_hidden *= self.task.scale
        if self.of_table is not None:
            if self.task.frozen_row is not None:
                self.of_table[self.task.frozen_row] = 0
            self.of_table = self.of_table.to(self.table.dtype)
        if self.of_bias is not None and self.bias is not None:
            self.of_bias = self.of_bias.to(self.bias.dtype)


def _turn(scores: Tensor, words: Tensor, shares: Tensor, smoothing: float) -> Tensor:
    """Return the losses of a chunk, and turn its scores into their gradients, in place."""
    index = words.unsqueeze(1)
    scores -= scores.amax(1, keepdim=True)
    chosen = scores.gather(1, index).squeeze(1)
    mean = scores.mean(1) if smoothing else chosen
    sums = scores.exp_().sum(1)
    scores *= (shares / sums).unsqueeze(1)
    scores.scatter_add_(1, index, (-(1 - smoothing) * shares).unsqueeze(1))
    if smoothing:
        scores -= (shares * smoothing / scores.shape[1]).unsqueeze(1)
    return sums.log() - (1 - smoothing) * chosen - smoothing * mean


def _in_range(words: Tensor, count: int) -> Tensor:
    """Return the words, or let torch complain of one that is none."""
    if not words.is_cuda:
        wrong = words[(words < 0) | (words >= count)]
        if len(wrong):
            functional.nll_loss(torch.zeros(1, count), wrong[:1].cpu(), ignore_index=0)
    return words


def chunked_cross_entropy(
    task: Task,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    targets: Tensor,
    plain: Plain,
    gathering: Gathering | None,
) -> Tensor:
    """Return the loss of all tokens; its graph holds the gradients, or makes them anew where they are spent.

    Args:
        task: What to compute.
        tensors: Hidden states, table (or the handle that gathers its gradient) and bias.
        targets: The words that follow, of dtype int64.
        plain: The same loss in plain torch; derivatives of higher order are taken of that.
        gathering: Takes the table's gradient, if given.
    """
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        losses = Pass(task, *tensors).run(targets, task.shares(targets), (False, False, False))
        return task.reduce(losses, targets)
    return _ChunkedLoss.apply(*tensors, targets, task, plain, gathering)  # type: ignore[no-any-return]


class _ChunkedLoss(torch.autograd.Function):
    """A loss that has made its gradients already, unless they depend on what comes back for each token."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any) -> Tensor:
        task, ctx.plain, ctx.gathering = rest
        ctx.task, ctx.ready = task, None
        ctx.save_for_backward(hidden, table, bias, targets)
        walk = Pass(task, hidden, table, bias)
        late = task.rule.reduction == "none"
        losses = walk.run(targets, task.shares(targets), (False, False, False) if late else ctx.needs_input_grad[:3])
        ctx.ready = None if late else walk.gradients()
        return task.reduce(losses, targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        hidden, table, bias, targets = ctx.saved_tensors
        wanted, ready, ctx.ready = ctx.needs_input_grad[:3], ctx.ready, None
        if not is_ordinary_backward(grad):
            return *_differentiable(ctx.plain, (hidden, table, bias), wanted, grad), *[None] * 4
        late = ctx.task.rule.reduction == "none"
        if ready is None:
            walk = Pass(ctx.task, hidden, table, bias)
            shares = ctx.task.shares(targets)
            walk.run(targets, shares * grad if late else shares, wanted)
            ready = walk.gradients()
        if not late and (grad.is_cuda or float(grad) != 1):
            for gradient in ready:
                if gradient is not None:
                    gradient *= grad
        of_hidden, of_table, of_bias = ready
        total = ctx.gathering.sum_for(table, grad) if ctx.gathering is not None and of_table is not None else None
        if total is not None:
            total.take_in(of_table)
        return of_hidden, of_table if total is None else None, of_bias, *[None] * 4


def _differentiable(plain: Plain, tensors: tuple[Tensor, Tensor, Tensor | None], wanted: Flags, grad: Tensor) -> Any:
    """Return gradients that can be differentiated again, by the plain way, with the memory that it takes.

    Each tensor is taken apart from the others: hidden states usually come from the table, and that way is not ours.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        hidden, table, bias = tensors
        apart = hidden.view_as(hidden), table.view_as(table), None if bias is None else bias.view_as(bias)
        inputs = [tensor for tensor, needed in zip(apart, wanted, strict=True) if tensor is not None and needed]
        found = iter(torch.autograd.grad(plain(*apart), inputs, grad, create_graph=again))
    return tuple(next(found) if needed else None for needed in wanted)
