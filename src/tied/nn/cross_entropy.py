"""Cross-entropy over a large vocabulary, in chunks of tokens, with the gradients made on the way.

Owns: the chunked computation and its autograd node. Must not decide when it is used, and must compute what
`lm_head.py` writes plainly. Read next: `lm_head.py`; `products.py`, which makes the products.

The scores of all tokens are by far the largest tensor of a language model. Here a chunk of tokens is scored, its
loss is taken, and the same memory is turned into the gradient of the scores, which goes into the gradients of
the hidden states and of the table before the next chunk takes its place. Within a chunk, the words come in blocks,
so that a block of scores and its rows of the table stay in the cache for all that is done with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tied.nn.accumulate import Gathering, first_rows, is_ordinary_backward
from tied.nn.products import add_product, product

SMALLEST_CHUNK, LARGEST_CHUNK = 64, 1024  # tokens
FEW_SCORES = 2**20  # that a chunk may have, however small the table
WORDS_AT_ONCE = 2048  # on a CPU: 256 scores of each, and their rows of the table, take a few megabytes

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
        counted = targets != self.task.rule.ignore_index
        words = _in_range(torch.where(counted, targets, 0), self.task.words)
        losses = torch.zeros_like(shares)
        self._make_room(wanted)
        with torch.autocast(self.hidden.device.type, enabled=False):
            for chunk in _slices(len(self.hidden), self._chunk_size()):
                losses[chunk] = self._walk(chunk, Softmax(words[chunk], shares[chunk], self.task), any(wanted))
        self._finish()
        return losses.masked_fill_(~counted, 0)

    def gradients(self) -> Gradients:
        """Return the gradients of hidden states, table and bias, where wanted."""
        return self.of_hidden, self.of_table, self.of_bias

    def _chunk_size(self) -> int:
        """The scores of one chunk take about half the memory of the table, or a few megabytes."""
        tokens, width = self.hidden.shape
        return min(tokens, max(SMALLEST_CHUNK, min(LARGEST_CHUNK, max(width // 2, FEW_SCORES // self.task.words))))

    def _make_room(self, wanted: Flags) -> None:
        for_hidden, for_table, for_bias = wanted
        precision = self.task.precision
        if for_hidden:
            self.of_hidden = torch.empty_like(self.hidden, memory_format=torch.contiguous_format)
        if for_table:
            self.of_table = torch.zeros(self.table.shape, dtype=precision, device=self.table.device)
        if for_bias and self.bias is not None:
            self.of_bias = torch.zeros(self.bias.shape, dtype=precision, device=self.bias.device)

    def _walk(self, chunk: slice, softmax: Softmax, with_slopes: bool) -> Tensor:
        """Return the losses of a chunk: once over all words for the scores, then once more for the slopes."""
        task, kept = self.task, list[tuple[Tensor, Tensor | None]]()
        inputs = self.hidden[chunk].to(task.dtype)
        inputs = inputs if task.scale == 1 else inputs * task.scale
        blocks = _slices(task.words, WORDS_AT_ONCE if inputs.device.type == "cpu" else task.words)
        for block in blocks:
            scores, bend = self._scores(inputs, block)
            softmax.see(scores, block)
            if with_slopes:
                kept.append((scores, bend))
        losses = softmax.losses()
        of_inputs = torch.zeros_like(inputs, dtype=task.precision)
        for number, (powers, bend) in enumerate(kept):
            slopes = softmax.slopes(powers, blocks[number], number)
            self._collect(slopes if bend is None else slopes.mul_(bend), inputs, blocks[number], of_inputs)
        if with_slopes and self.of_hidden is not None:
            self.of_hidden[chunk] = of_inputs
        return losses

    def _scores(self, inputs: Tensor, block: slice) -> tuple[Tensor, Tensor | None]:
        """Return the scores of a chunk for a block of words, and what the soft cap multiplies their gradient by."""
        cap = self.task.soft_cap
        scores = product(inputs, self.matrix[block].t(), None if self.offset is None else self.offset[block])
        if cap is None:
            return scores.to(self.task.precision), None
        scores = scores.div_(cap).tanh_().to(self.task.precision)
        bend = 1 - scores.square()
        return scores.mul_(cap), bend

    def _collect(self, slopes: Tensor, inputs: Tensor, block: slice, of_inputs: Tensor) -> None:
        """Add the gradient of a block of scores to the gradients of what the scores are made of."""
        if self.of_bias is not None:
            self.of_bias[block] += slopes.sum(0)
        slopes = slopes.to(self.task.dtype)
        if self.of_hidden is not None:
            add_product(of_inputs, slopes, self.matrix[block])
        if self.of_table is not None:
            add_product(self.of_table[block], slopes.t(), inputs)

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


class Softmax:
    """The softmax of scores that come in blocks of words: the losses when all were seen, and then the slopes.

    The exponentials of a block are those of what is below its own highest score, so that none overflows; blocks
    are brought together by the differences of their highest scores.
    """

    def __init__(self, words: Tensor, shares: Tensor, task: Task) -> None:
        self._words, self._shares, self._count, self._smoothing = words, shares, task.words, task.rule.label_smoothing
        self._chosen = torch.zeros_like(shares)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sizes: list[int] = []

    def see(self, scores: Tensor, block: slice) -> None:
        """Turn scores into exponentials of what is below the highest of them, in place; keep the sums."""
        here, index = self._places(block)
        self._chosen = torch.where(here, scores.gather(1, index).squeeze(1), self._chosen)
        top = scores.amax(1).clamp_(min=torch.finfo(scores.dtype).min)  # where all are -inf, their powers are 0
        scores -= top.unsqueeze(1)
        total = scores.sum(1) if self._smoothing else top
        self._seen.append((top, total, scores.exp_().sum(1)))
        self._sizes.append(scores.shape[1])

    def losses(self) -> Tensor:
        """Return the loss of each token."""
        tops, totals, sums = (torch.stack(each) for each in zip(*self._seen, strict=True))
        top = tops.amax(0)
        parts = (tops - top).exp()
        whole = (parts * sums).sum(0)
        self._factors = parts * (self._shares / whole)
        loss = whole.log() - (1 - self._smoothing) * (self._chosen - top)
        if not self._smoothing:
            return loss
        sizes = tops.new_tensor(self._sizes).unsqueeze(1)
        return loss - self._smoothing / self._count * (totals + sizes * (tops - top)).sum(0)

    def slopes(self, powers: Tensor, block: slice, number: int) -> Tensor:
        """Turn exponentials into the gradient of `sum(shares * losses)` by the scores, in place."""
        powers *= self._factors[number].unsqueeze(1)
        here, index = self._places(block)
        aims = torch.where(here, (self._smoothing - 1) * self._shares, 0)
        powers.scatter_add_(1, index, aims.unsqueeze(1))
        if self._smoothing:
            powers -= (self._shares * self._smoothing / self._count).unsqueeze(1)
        return powers

    def _places(self, block: slice) -> tuple[Tensor, Tensor]:
        """Tell which tokens have their word in a block, and where it stands there."""
        places, size = self._words - block.start, block.stop - block.start
        return (places >= 0) & (places < size), places.clamp(0, size - 1).unsqueeze(1)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


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
