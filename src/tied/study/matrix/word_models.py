"""The identity tie: a word model whose head is its embedding, tied in each way that people use.

Owns: the model, and one function per recipe, as `tied.study.recipes` does for the transposed tie.
Must not judge. Read next: `kinds.py`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tied.binding import tie
from tied.study.recipes import built
from tied.study.reference import HIDDEN

WORDS = 40


class WordModel(nn.Module):
    """From a word to scores of the next one: `head(tanh(embed(t)))`; both weights start with the same values.

    Shapes:
        tokens: `(batch,)`; `embed.weight` and `head.weight`: `(40, 16)`; scores: `(batch, 40)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, HIDDEN)
        self.head = nn.Linear(HIDDEN, WORDS)
        nn.init.xavier_uniform_(self.embed.weight)
        with torch.no_grad():
            self.head.weight.copy_(self.embed.weight)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map words `(batch,)` to codes `(batch, 16)`."""
        return torch.tanh(self.embed(tokens))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to scores `(batch, 40)`."""
        return self.head(codes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map words `(batch,)` to scores `(batch, 40)`."""
        return self.decode(self.encode(tokens))


start = partial(built, WordModel)
"""Builds the model that every recipe starts from, of a seed and in a dtype."""


def second_parameter(model: WordModel) -> nn.Module:
    """Wrap the embedding's weight in a Parameter of its own."""
    model.head.weight = nn.Parameter(model.embed.weight)  # tied: ignore[TIE601]
    return model


def data_alias(model: WordModel) -> nn.Module:
    """Point `.data` of one Parameter at the other's memory."""
    model.head.weight.data = model.embed.weight.data  # tied: ignore[TIE602]
    return model


def copy_hook(model: WordModel) -> nn.Module:
    """Copy the embedding's weight into the head before each forward."""

    def copy(head: nn.Linear, _: object) -> None:
        with torch.no_grad():
            head.weight.copy_(model.embed.weight)  # tied: ignore[TIE604]

    model.head.register_forward_pre_hook(copy)
    return model


class Functional(WordModel):
    """No head at all: `forward` names the embedding's weight a second time."""

    def __init__(self, model: WordModel) -> None:
        nn.Module.__init__(self)
        self.embed = model.embed
        self.head_bias = model.head.bias

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to scores `(batch, 40)`."""
        return F.linear(codes, self.embed.weight, self.head_bias)


class HoldsEmbedding(nn.Module):
    """A head that keeps the embedding as a submodule."""

    def __init__(self, embed: nn.Embedding, bias: nn.Parameter) -> None:
        super().__init__()
        self.embed = embed
        self.bias = bias

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to scores `(batch, 40)`."""
        return F.linear(codes, self.embed.weight, self.bias)


def holds_embedding(model: WordModel) -> nn.Module:
    """Replace the head by a module that holds the embedding."""
    model.head = HoldsEmbedding(model.embed, model.head.bias)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def registered_twice(model: WordModel) -> nn.Module:
    """Register the embedding's Parameter in both layers."""
    model.head.weight = model.embed.weight
    return model


def declared(model: WordModel) -> nn.Module:
    """Declare the tie."""
    tie(model, "head.weight", "embed.weight")
    return model
