"""The two kinds of tie, and the columns of each: the recipes, and where their models keep the parts.

Owns: which recipe stands in which column, and each kind's formula by hand. Must not use `tied` in a formula:
it is the oracle. Read next: `subject.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tied.study import recipes
from tied.study.matrix import word_models
from tied.study.reference import PIXELS

BATCH = 32
PLAIN: Mapping[str, str] = {
    "weight": "encoder.weight",
    "encoder_bias": "encoder.bias",
    "decoder_bias": "decoder.bias",
}


@dataclass(frozen=True)
class Column:
    """One recipe, on one kind of model.

    Attributes:
        key: A short name: the head of the column, and what `--explain` takes.
        name: What the demo calls it.
        line: The code that people write.
        build: Ties a fresh model; may change that model or return another.
        source: Path of the module that owns the weight.
        target: Path of the module that uses it a second time; None where there is none.
        parameters: Name of the parameter for each leaf of the formula.
    """

    key: str
    name: str
    line: str
    build: Callable[[Any], nn.Module]
    source: str = "encoder"
    target: str | None = "decoder"
    parameters: Mapping[str, str] = field(default_factory=lambda: PLAIN)

    @property
    def ours(self) -> bool:
        """Whether the recipe is `tied`'s own."""
        return self.key.startswith("tied")

    @property
    def target_key(self) -> str:
        """The name under which other people's files keep the second use."""
        return f"{self.target or self.source.replace('encoder', 'decoder').replace('embed', 'head')}.weight"


@dataclass(frozen=True)
class Kind:
    """A kind of tie.

    Attributes:
        name: `"transposed"` or `"identity"`.
        start: Builds the untied model from a seed, in a dtype.
        inputs: Draws a batch, from a generator, in a dtype.
        compute: The forward by hand: from the leaves and the shared weight to the outputs.
        goal: Shape of the outputs.
        columns: The recipes.
    """

    name: str
    start: Callable[[int, torch.dtype], nn.Module]
    inputs: Callable[[torch.Generator, torch.dtype], Tensor]
    compute: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
    goal: tuple[int, int]
    columns: tuple[Column, ...]

    def column(self, key: str) -> Column:
        """Return the column of that key."""
        return next(column for column in self.columns if column.key == key)


def images(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw images `(32, 64)`."""
    return torch.rand(BATCH, PIXELS, generator=generator, dtype=dtype)


def tokens(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw tokens `(32,)`; integers, whatever the dtype of the model."""
    return torch.randint(word_models.WORDS, (BATCH,), generator=generator)


def autoencoder(leaves: Mapping[str, Tensor], weight: Tensor, inputs: Tensor) -> Tensor:
    """Compute `tanh(x Wᵀ + b) W + c`."""
    return torch.tanh(inputs @ weight.t() + leaves["encoder_bias"]) @ weight + leaves["decoder_bias"]


def word_model(leaves: Mapping[str, Tensor], weight: Tensor, inputs: Tensor) -> Tensor:
    """Compute `tanh(E[t]) Eᵀ + c`."""
    return torch.tanh(weight[inputs]) @ weight.t() + leaves["decoder_bias"]


def _transposed(key: str, recipe: str, **places: Any) -> Column:
    known = recipes.BY_NAME[recipe]
    return Column(key, known.name, known.line, known.build, **places)


_FUNCTIONAL = {**PLAIN, "decoder_bias": "decoder_bias"}
_READY_MADE = {"weight": "encoder.0.weight", "encoder_bias": "encoder.0.bias", "decoder_bias": "decoder.0.bias"}

TRANSPOSED = Kind(
    "transposed",
    recipes.start,
    images,
    autoencoder,
    (BATCH, PIXELS),
    (
        _transposed("Parameter", "nn.Parameter(w.t())"),
        _transposed("data", ".data alias"),
        _transposed("hook", "hook that copies"),
        _transposed("functional", "functional form", target=None, parameters=_FUNCTIONAL),
        _transposed("holds", "holds the encoder"),
        _transposed("twice", "registered twice"),
        _transposed("tied", "tied"),
        _transposed("tied.nn", "TiedAutoencoder", source="encoder.0", target="decoder.0", parameters=_READY_MADE),
    ),
)

_WORDS = {"weight": "embed.weight", "decoder_bias": "head.bias"}
_WORDS_FUNCTIONAL = {**_WORDS, "decoder_bias": "head_bias"}


def _identity(
    key: str, name: str, build: Callable[[word_models.WordModel], nn.Module], line: str, target: str | None = "head"
) -> Column:
    parameters = _WORDS if target else _WORDS_FUNCTIONAL
    return Column(key, name, line, build, "embed", target, parameters)


IDENTITY = Kind(
    "identity",
    word_models.start,
    tokens,
    word_model,
    (BATCH, word_models.WORDS),
    (
        _identity(
            "Parameter", "nn.Parameter(w)", word_models.second_parameter, "head.weight = nn.Parameter(embed.weight)"
        ),
        _identity("data", ".data alias", word_models.data_alias, "head.weight.data = embed.weight.data"),
        _identity(
            "hook", "hook that copies", word_models.copy_hook, "head.weight.copy_(embed.weight)  # before each forward"
        ),
        _identity(
            "functional", "functional form", word_models.Functional, "F.linear(codes, embed.weight, head_bias)", None
        ),
        _identity(
            "holds", "holds the embedding", word_models.holds_embedding, "self.head = HoldsEmbedding(self.embed)"
        ),
        _identity("twice", "registered twice", word_models.registered_twice, "head.weight = embed.weight"),
        _identity("tied", "tied", word_models.declared, 'tied.tie(model, "head.weight", "embed.weight")'),
    ),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (TRANSPOSED, IDENTITY)}
