"""Small language models, with one matrix for embedding and head or with two, and how they are trained.

Owns: the models and their task. Must not read files or step. Read next: `loop.py`.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from tied.binding import tie_layers
from tied.nn import TiedEmbedding
from tied.study.train.plan import LanguagePlan
from tied.study.train.text import Corpus, windows

HEADS = 4
TEMPERATURE = 0.8


class Recurrent(nn.Module):
    """An LSTM that starts every window anew."""

    def __init__(self, plan: LanguagePlan) -> None:
        super().__init__()
        between = plan.dropout if plan.layers > 1 else 0.0
        self.cells = nn.LSTM(plan.width, plan.width, plan.layers, dropout=between, batch_first=True)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(batch, time, width)` to the same shape; each time sees those before it."""
        return self.cells(vectors)[0]


class Attentive(nn.Module):
    """Transformer layers with causal attention and learned positions; with `loops`, one layer run many times."""

    def __init__(self, plan: LanguagePlan) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(plan.context, plan.width) * plan.width**-0.5)
        self.layers = nn.ModuleList(_layer(plan) for _ in range(plan.loops or plan.layers))
        self.norm = nn.LayerNorm(plan.width)
        if plan.tie and plan.loops > 1:
            tie_layers(self, "layers", pattern="all", private=["*.norm*"])

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(batch, time, width)` to the same shape; each time sees itself and those before it."""
        time = vectors.shape[1]
        mask = torch.full((time, time), -math.inf, device=vectors.device, dtype=vectors.dtype).triu(1)
        hidden = vectors + self.positions[:time]
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.norm(hidden)


def _layer(plan: LanguagePlan) -> nn.Module:
    heads = math.gcd(HEADS, plan.width)
    return nn.TransformerEncoderLayer(
        plan.width, heads, 4 * plan.width, plan.dropout, "gelu", batch_first=True, norm_first=True
    )


class LanguageModel(nn.Module):
    """Predict the next token.

    Law: tied, the head's matrix is the embedding's, exact: `tied.nn.TiedEmbedding`.

    The embedding's output is multiplied by sqrt(width), since its table starts small, for the head's sake.

    Shapes:
        tokens: `(batch, time)`, integers; returns logits `(batch, time, vocabulary)`.

    Source:
        Press and Wolf 2017, arXiv:1608.05859, section 3 (one matrix); Vaswani et al. 2017, arXiv:1706.03762,
        section 3.4 (the factor).
    """

    def __init__(self, plan: LanguagePlan, vocabulary: int) -> None:
        super().__init__()
        self.scale = math.sqrt(plan.width)
        self.embed = TiedEmbedding(vocabulary, plan.width, tie=plan.tie, bias=True)
        self.dropout = nn.Dropout(plan.dropout)
        self.core = Recurrent(plan) if plan.network == "lstm" else Attentive(plan)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the token behind each one."""
        vectors = self.dropout(self.embed(tokens) * self.scale)
        return self.embed.logits(self.dropout(self.core(vectors)))

    @torch.no_grad()
    def continued(self, tokens: list[int], count: int, *, context: int, generator: torch.Generator) -> list[int]:
        """Write on: draw `count` tokens one by one, at a temperature of 0.8."""
        written = list(tokens)
        for _ in range(count):
            logits = self(torch.tensor([written[-context:]]))[0, -1] / TEMPERATURE
            written.append(int(torch.multinomial(logits.softmax(0), 1, generator=generator)))
        return written[len(tokens) :]


class LanguageTask:
    """Predict each token of a text from those before it in its window."""

    figure_name = "perplexity"
    unit = "tokens"

    def __init__(self, plan: LanguagePlan, corpus: Corpus) -> None:
        """Cut the text into windows."""
        self.plan, self.corpus, self.source = plan, corpus, corpus.source
        self.training, self.held_out = (windows(part, plan.context) for part in (corpus.training, corpus.held_out))
        self.units_per_sample = plan.context
        self.baselines = {"the words' frequencies alone": self.figure(_unigram(corpus))}

    def model(self) -> nn.Module:
        """Return a new model for this vocabulary."""
        return LanguageModel(self.plan, len(self.corpus.vocabulary))

    def inputs(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return all tokens but the last of each window."""
        return batch[:, :-1]

    def losses(self, model: nn.Module, inputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return each window's mean cross-entropy, in nats per token."""
        targets = batch[:, 1:]
        losses = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.reshape(targets.shape).mean(1)

    def figure(self, loss: float) -> float:
        """Return the perplexity: e to the cross-entropy."""
        return math.exp(min(loss, 700.0))


def _unigram(corpus: Corpus) -> float:
    """Return the held-out cross-entropy of the training part's frequencies, each count one more."""
    counts = torch.bincount(corpus.training, minlength=len(corpus.vocabulary)).double() + 1
    return float(-(counts / counts.sum()).log()[corpus.held_out].mean())
