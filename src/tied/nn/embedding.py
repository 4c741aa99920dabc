"""An embedding that is its own head: words in by rows of a table, words out by products with the same rows.

Owns: `TiedEmbedding`. Must not implement tying, which is `tied.tie`, nor the loss, which is `lm_head.py`.
Read next: `lm_head.py`.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from typing_extensions import Self, Unpack

from tied.binding import tie as declare, ties
from tied.binding.target_tensor import Target
from tied.errors import AddressError, DtypeError, KindError, ShapeError, during, nearest
from tied.nn.accumulate import gathered_embedding
from tied.nn.cross_entropy import LossRule
from tied.nn.input_checks import check_size, explain_bad_input
from tied.nn.lm_head import Head


class HeadOptions(TypedDict, total=False):
    """How the head of a `TiedEmbedding` differs from a bare product; see there."""

    bias: bool
    scale: float
    soft_cap: float | None
    head_dtype: torch.dtype | None
    pad_to_multiple_of: int


class TiedEmbedding(nn.Embedding):
    """An embedding whose table is used backwards as the head of a language model.

    Law: `emb(tokens) == F.embedding(tokens, emb.weight)`, and
    `emb.logits(h) == cap(F.linear(scale * h, emb.weight[:num_embeddings], bias))`, `cap(z) = c * tanh(z / c)`.

    The head is `emb.head`, an `nn.Linear` whose weight is tied to the table: the state dict has `weight`, and
    `head.bias` if there is one. `loss` is the cross-entropy of the logits without ever holding all of them.

    The table starts from a normal distribution of deviation `1 / (scale * sqrt(embedding_dim))`, so that hidden
    states of unit variance give logits of unit variance, and a first loss of about `ln(num_embeddings) + 0.5`. (The
    distribution of `nn.Embedding`, of deviation 1, would give several times that.) With `scale=embedding_dim**-0.5`
    this *is* deviation 1: embeddings of unit variance, as in T5.

    The row at `padding_idx` starts as zeros and gets no gradient from either use, so that it stays as it is. It
    keeps its logit: its bias, or 0.

    Shapes:
        tokens: `(...)`, integers; embeddings and hidden states: `(..., embedding_dim)`; logits:
        `(..., num_embeddings)`; targets: `(...)`, int64.

    Args:
        num_embeddings: The words.
        embedding_dim: The width.
        padding_idx: A word whose row is never trained; counted from the end if negative.
        tie: `False` gives the untied twin: the same interface, and a head with a table of its own.
        device: Of the parameters.
        dtype: Of the parameters.
        head: Options of the head. `bias`: whether it has one, of its own, starting as zeros (default no). `scale`:
            hidden states are multiplied by it (default 1). `soft_cap`: the bound that logits approach (default
            none). `head_dtype`: the dtype of the product and the logits (default that of the table).
            `pad_to_multiple_of`: the table gets rows of zeros after its last word until their number is a
            multiple of this; no word and no logit stands for them (default 1).

    Raises:
        ShapeError: a size that is not positive.
        AddressError: `padding_idx` is no word.
        DtypeError: `dtype` or `head_dtype` is not real floating point.

    Example:
        >>> emb = TiedEmbedding(1000, 64, bias=True, pad_to_multiple_of=128)
        >>> emb
        TiedEmbedding(
          1000, 64, pad_to_multiple_of=128
          (head): Linear(in_features=64, out_features=1000, bias=True, weight=weight[:1000])
        )
        >>> hidden = emb(torch.tensor([[1, 2, 3]]))
        >>> emb.logits(hidden).shape, emb.loss(hidden, torch.tensor([[2, 3, 4]])).shape
        (torch.Size([1, 3, 1000]), torch.Size([]))

    Source:
        Press and Wolf 2017, arXiv:1608.05859, section 3; Inan et al. 2017, arXiv:1611.01462. The scale: Raffel et
        al. 2020, arXiv:1910.10683 (T5). The soft cap: Gemma 2, 2024, arXiv:2408.00118, section 2.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        tie: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **head: Unpack[HeadOptions],
    ) -> None:
        with during(f"TiedEmbedding({num_embeddings!r}, {embedding_dim!r})"):
            _check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
            _check_float("dtype", dtype)
            padding_idx = _checked_padding(padding_idx, num_embeddings)
            options = _checked_options(head)
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.scale, self.soft_cap = options["scale"], options["soft_cap"]
        self.head_dtype, self.pad_to_multiple_of = options["head_dtype"], options["pad_to_multiple_of"]
        table = torch.empty(self._rows(num_embeddings), embedding_dim, device=device, dtype=dtype)
        self.weight = nn.Parameter(table)
        like: dict[str, Any] = {"device": table.device, "dtype": table.dtype}
        self.head = cast("nn.Linear", skip_init(nn.Linear, embedding_dim, num_embeddings, options["bias"], **like))
        if tie:
            self._tie()
        self.reset_parameters()

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, *, tie: bool = True, **head: Unpack[HeadOptions]) -> Self:
        """Give a trained embedding a head: the same Parameter, not a copy.

        Args:
            embedding: Any `nn.Embedding` without `max_norm`, `sparse` and `scale_grad_by_freq`, which
                have no meaning for a head.
            tie: As for the class. The twin's own table starts as a copy.
            head: As for the class, but nothing can be padded: the Parameter stays as it is.

        Raises:
            KindError: `embedding` is no such embedding.

        Example:
            >>> table = nn.Embedding(10, 4)
            >>> TiedEmbedding.from_embedding(table).weight is table.weight
            True
        """
        with during(f"TiedEmbedding.from_embedding({type(embedding).__name__})"):
            _check_embedding(embedding, head)
            weight = embedding.weight
        words, width = weight.shape
        made = cls(words, width, embedding.padding_idx, tie=tie, device="meta", dtype=weight.dtype, **head)
        made.weight = weight
        made.head.to_empty(device=weight.device)
        with torch.no_grad():
            if made.bias is not None:
                made.bias.zero_()
            if not tie:
                made.head.weight.copy_(weight)
        return made

    def reset_parameters(self) -> None:
        """Draw the table anew, and that of the head if it has one of its own; clear padding and bias."""
        deviation = 1 / (self.scale * math.sqrt(self.embedding_dim))
        with torch.no_grad():
            self.weight.normal_(0, deviation)
            self.weight[self.num_embeddings :] = 0
            if self.padding_idx is not None:
                self.weight[self.padding_idx] = 0
            if not self.is_tied:
                self.head.weight.normal_(0, deviation)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the head, if it has one."""
        return cast("Tensor | None", self.head.bias)

    @property
    def is_tied(self) -> bool:
        """Whether the head reads the table."""
        return any(tie.address == ("head", "weight") for tie in ties(self))

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the words `(...)`, as `(..., embedding_dim)`."""
        try:
            return gathered_embedding(input, self.weight, self.num_embeddings, self.padding_idx)
        except (RuntimeError, TypeError):
            _explain_words(input)
            raise

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of all words for hidden states `(..., embedding_dim)`, as `(..., num_embeddings)`."""
        self._check_hidden(hidden, "logits(hidden)")
        try:
            return self._head().scores(hidden)
        except RuntimeError:
            explain_bad_input(self, hidden, self.weight, self.embedding_dim)
            raise

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the cross-entropy of `logits(hidden)`, without holding all logits at once.

        Law: `emb.loss(h, t) == F.cross_entropy(emb.logits(h).flatten(0, -2), t.flatten())`, up to rounding; errors
        and not-a-numbers included.

        Memory does not grow with the number of tokens, but for the gradient of `hidden`. The gradients of
        both uses of the table share one buffer.

        Args:
            hidden: `(..., embedding_dim)`.
            targets: `(...)`, the words that are to be predicted; int64.
            ignore_index: The target that does not count.
            label_smoothing: The share of the target that is spread over all words.
            reduction: `"mean"` over the targets that count, `"sum"`, or `"none"`, which gives a loss for each.

        Raises:
            ShapeError: `hidden` and `targets` do not fit.
        """
        self._check_hidden(hidden, "loss(hidden, targets)")
        with during("TiedEmbedding.loss(hidden, targets)"):
            if targets.shape != hidden.shape[:-1]:
                raise ShapeError(
                    "There is not one target for each hidden state.",
                    found=f"hidden of shape {tuple(hidden.shape)}, targets of shape {tuple(targets.shape)}",
                    expected=f"targets of shape {tuple(hidden.shape[:-1])}",
                    fix="emb.loss(hidden[:, :-1], tokens[:, 1:])",
                )
        rows = hidden.reshape(-1, self.embedding_dim)
        found = self._head().loss(rows, targets.reshape(-1), LossRule(ignore_index, label_smoothing, reduction))
        return found.reshape(targets.shape) if reduction == "none" else found

    def resize(self, num_embeddings: int) -> None:
        """Change the number of words; the rows and biases of those that stay are kept, and so is the tie.

        New rows are drawn like the first ones, new biases are 0. The table is a new Parameter: an optimizer must be
        built anew.

        Args:
            num_embeddings: The new number of words.

        Raises:
            ShapeError: it is not positive.
            AddressError: `padding_idx` would be no word any more.

        Example:
            >>> emb = TiedEmbedding(10, 4)
            >>> emb.resize(12)
            >>> emb.logits(torch.zeros(1, 4)).shape
            torch.Size([1, 12])
        """
        with during(f"TiedEmbedding.resize({num_embeddings!r})"):
            _check_sizes(num_embeddings=num_embeddings)
            _checked_padding(self.padding_idx, num_embeddings)
        options: dict[str, Any] = {name: getattr(self, name) for name in ("scale", "soft_cap", "pad_to_multiple_of")}
        new = TiedEmbedding(
            num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            tie=False,
            device=self.weight.device,
            dtype=self.weight.dtype,
            bias=self.bias is not None,
            **options,
        )
        tied, kept = self.is_tied, min(num_embeddings, self.num_embeddings)
        pairs = [(new.weight, self.weight), (new.head.weight, self.head.weight), (new.bias, self.bias)]
        for young, old in pairs:
            if young is not None and old is not None:
                young.detach()[:kept] = old.detach()[:kept]
                young.requires_grad_(old.requires_grad)
        self.num_embeddings, self.weight = num_embeddings, new.weight
        self.head = new.head.train(self.training)
        if tied:
            self._tie()

    def extra_repr(self) -> str:
        """Show what differs from the defaults."""
        shown = [f"{self.num_embeddings}, {self.embedding_dim}"]
        plain = {"padding_idx": None, **_DEFAULTS}
        values = {name: getattr(self, name) for name in plain if name != "bias"}
        return ", ".join(shown + [f"{name}={value}" for name, value in values.items() if value != plain[name]])

    def _tie(self) -> None:
        whole = len(self.weight) == self.num_embeddings
        declare(self, "head.weight", "weight" if whole else f"weight[:{self.num_embeddings}]")

    def _rows(self, words: int) -> int:
        return -(-words // self.pad_to_multiple_of) * self.pad_to_multiple_of

    def _head(self) -> Head:
        table: Tensor = self.head.weight
        return Head(
            table.plain if isinstance(table, Target) else table,
            self.bias,
            scale=self.scale,
            soft_cap=self.soft_cap,
            dtype=self.head_dtype,
            frozen_row=self.padding_idx,
        )

    def _check_hidden(self, hidden: Tensor, call: str) -> None:
        if not hidden.dim() or hidden.shape[-1] != self.embedding_dim:
            problem, found = "The hidden states are not as wide as the table.", f"hidden of shape {tuple(hidden.shape)}"
            fix = "project them first: nn.Linear(hidden_width, embedding_dim)"
            with during(f"TiedEmbedding.{call}"):
                raise ShapeError(problem, found=found, expected=f"(..., {self.embedding_dim})", fix=fix)


def _explain_words(words: object) -> None:
    """Say why no rows could be looked up, if that is because of the dtype."""
    if not isinstance(words, Tensor) or words.dtype not in (torch.int64, torch.int32):
        found = f"a tensor of {words.dtype}" if isinstance(words, Tensor) else f"a {type(words).__name__}"
        expected, fix = "a tensor of int64 or int32", "torch.as_tensor(input, dtype=torch.int64)"
        with during("TiedEmbedding.forward(input)"):
            raise DtypeError("The input holds no words.", found=found, expected=expected, fix=fix) from None


_DEFAULTS: dict[str, Any] = {
    "bias": False,
    "scale": 1.0,
    "soft_cap": None,
    "head_dtype": None,
    "pad_to_multiple_of": 1,
}


def _checked_options(head: HeadOptions) -> dict[str, Any]:
    given: dict[str, Any] = {**head}
    unknown = [name for name in given if name not in _DEFAULTS]
    if unknown:
        raise AddressError(
            f"'{unknown[0]}' is no option of the head.",
            found=f"{unknown[0]}={given[unknown[0]]!r}",
            expected=", ".join(_DEFAULTS),
            fix=f"did you mean {nearest(unknown[0], _DEFAULTS) or 'bias'}?",
        )
    options = _DEFAULTS | given
    _check_sizes(pad_to_multiple_of=options["pad_to_multiple_of"])
    _check_float("head_dtype", options["head_dtype"])
    _check_positive("scale", options["scale"])
    if options["soft_cap"] is not None:
        _check_positive("soft_cap", options["soft_cap"])
    return options


def _check_sizes(**sizes: object) -> None:
    for name, size in sizes.items():
        check_size(name, size, f"{name} is no size.")


def _check_positive(name: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise KindError(
            f"{name} is no factor.", found=f"{name}={value!r}", expected="a positive number", fix=f"leave {name} out"
        )


def _check_float(name: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise DtypeError(
            f"A table of words cannot be of this {name}.",
            found=f"{name}={dtype}",
            expected="a real floating-point dtype",
            fix=f"{name}=torch.float32",
        )


def _checked_padding(padding_idx: int | None, words: int) -> int | None:
    """Return the word that is padding, counted from the start."""
    if padding_idx is None:
        return None
    if not -words <= padding_idx < words:
        raise AddressError(
            "padding_idx is no word.",
            found=f"padding_idx={padding_idx}, num_embeddings={words}",
            expected=f"from {-words} to {words - 1}",
            fix="padding_idx=0, or leave it out",
        )
    return padding_idx % words


def _check_embedding(embedding: object, head: HeadOptions) -> None:
    if not isinstance(embedding, nn.Embedding):
        problem, found = "That is no embedding.", type(embedding).__name__
    elif not isinstance(embedding._parameters.get("weight"), nn.Parameter):
        problem, found = "The embedding owns no Parameter; its weight is computed or tied.", repr(embedding)
    elif embedding.max_norm is not None or embedding.sparse or embedding.scale_grad_by_freq:
        problem, found = "The embedding has options that have no meaning for a head.", repr(embedding)
    elif len(embedding.weight) % head.get("pad_to_multiple_of", 1):
        problem, found = "The Parameter would have to grow.", f"{head!r}, {embedding!r}"
    else:
        return
    raise KindError(
        problem,
        found=found,
        expected="an nn.Embedding with a Parameter of its own, without max_norm, sparse, scale_grad_by_freq",
        fix="make a TiedEmbedding(num_embeddings, embedding_dim) and copy the rows",
    )
