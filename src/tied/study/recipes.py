"""The ways in which people tie a decoder to an encoder, each as they write it.

Owns: the autoencoder, and one function per recipe. Must not judge: `study/demo/properties.py` does, by measuring.

Every recipe is built from the same start: an encoder, and a decoder whose weight has the values of the
encoder's, transposed. So all of them compute the same at first, the untied baseline included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from tied.binding import tie
from tied.nn import TiedAutoencoder
from tied.study.reference import HIDDEN, PIXELS

Model = TypeVar("Model", bound=nn.Module)


class Autoencoder(nn.Module):
    """One hidden layer: `decode(encode(x)) = V tanh(W x + b) + c`, where V starts with the values of Wᵀ.

    Xavier's scale is the same for a matrix and its transpose, so neither side starts better.

    Shapes:
        x: `(batch, 64)`; W = `encoder.weight`: `(16, 64)`; V = `decoder.weight`: `(64, 16)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(PIXELS, HIDDEN)
        self.decoder = nn.Linear(HIDDEN, PIXELS)
        nn.init.xavier_uniform_(self.encoder.weight)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.t())

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images `(batch, 64)` to codes `(batch, 16)`."""
        return torch.tanh(self.encoder(images))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to images `(batch, 64)`."""
        return self.decoder(codes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct images `(batch, 64)`."""
        return self.decode(self.encode(images))


def built(model: Callable[[], Model], seed: int, dtype: torch.dtype = torch.float32) -> Model:
    """Build a model with the random numbers of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model().to(dtype)


start = partial(built, Autoencoder)
"""Builds the model that every recipe starts from, of a seed and in a dtype."""


def assignment(model: Autoencoder) -> nn.Module:
    """Assign the transposed weight: the line that everybody tries first."""
    model.decoder.weight = model.encoder.weight.t()  # pyright: ignore[reportAttributeAccessIssue]  # tied: ignore[TIE603]
    return model


def second_parameter(model: Autoencoder) -> nn.Module:
    """Wrap the transposed weight in a Parameter, as torch's error seems to ask."""
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())  # tied: ignore[TIE601]
    return model


def data_alias(model: Autoencoder) -> nn.Module:
    """Point `.data` of one Parameter at the other's memory."""
    model.decoder.weight.data = model.encoder.weight.data.t()  # tied: ignore[TIE602]
    return model


def copy_hook(model: Autoencoder) -> nn.Module:
    """Copy the encoder's weight into the decoder before each forward."""

    def copy(decoder: nn.Linear, _: object) -> None:
        with torch.no_grad():
            decoder.weight.copy_(model.encoder.weight.t())  # tied: ignore[TIE604]

    model.decoder.register_forward_pre_hook(copy)
    return model


class Functional(Autoencoder):
    """No decoder layer at all: `forward` names the encoder's weight a second time."""

    def __init__(self, model: Autoencoder) -> None:
        nn.Module.__init__(self)
        self.encoder = model.encoder
        self.decoder_bias = model.decoder.bias

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to images `(batch, 64)`."""
        return F.linear(codes, self.encoder.weight.t(), self.decoder_bias)


class HoldsEncoder(nn.Module):
    """A decoder that keeps the encoder as a submodule."""

    def __init__(self, encoder: nn.Linear, bias: nn.Parameter) -> None:
        super().__init__()
        self.encoder = encoder
        self.bias = bias

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to images `(batch, 64)`."""
        return F.linear(codes, self.encoder.weight.t(), self.bias)


def holds_encoder(model: Autoencoder) -> nn.Module:
    """Replace the decoder by a module that holds the encoder."""
    model.decoder = HoldsEncoder(model.encoder, model.decoder.bias)  # pyright: ignore[reportAttributeAccessIssue]
    return model


class TransposedLinear(nn.Module):
    """A decoder that registers the encoder's own Parameter under a second name."""

    def __init__(self, encoder: nn.Linear, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight = encoder.weight
        self.bias = bias

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(batch, 16)` to images `(batch, 64)`."""
        return F.linear(codes, self.weight.t(), self.bias)


def registered_twice(model: Autoencoder) -> nn.Module:
    """Register the encoder's Parameter in both layers; the decoder transposes it."""
    decoder = TransposedLinear(model.encoder, model.decoder.bias)
    model.decoder = decoder  # pyright: ignore[reportAttributeAccessIssue]
    return model


def declared(model: Autoencoder) -> nn.Module:
    """Declare the tie."""
    tie(model, "decoder.weight", "encoder.weight.T")
    return model


def ready_made(model: Autoencoder) -> nn.Module:
    """Use the layer that has the tie built in, with the values of `model`."""
    twin = TiedAutoencoder((PIXELS, HIDDEN), "tanh", dtype=model.encoder.weight.dtype)
    twin.load_state_dict(
        {
            "encoder.0.weight": model.encoder.weight,
            "encoder.0.bias": model.encoder.bias,
            "decoder.0.bias": model.decoder.bias,
        }
    )
    return twin


def untied(model: Autoencoder) -> nn.Module:
    """Leave the two weights apart: the baseline."""
    return model


@dataclass(frozen=True)
class Recipe:
    """One way to tie.

    Attributes:
        name: What tables call it.
        line: The code that people write.
        build: Applies it to a fresh `start(seed)`; may change that model or return another.
    """

    name: str
    line: str
    build: Callable[[Autoencoder], nn.Module]

    def model(self, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build this recipe from the common start of `seed`."""
        return self.build(start(seed, dtype))


ALL: tuple[Recipe, ...] = (
    Recipe("raw assignment", "decoder.weight = encoder.weight.t()", assignment),
    Recipe("nn.Parameter(w.t())", "decoder.weight = nn.Parameter(encoder.weight.t())", second_parameter),
    Recipe(".data alias", "decoder.weight.data = encoder.weight.data.t()", data_alias),
    Recipe("hook that copies", "decoder.weight.copy_(encoder.weight.t())  # before each forward", copy_hook),
    Recipe("functional form", "F.linear(codes, encoder.weight.t(), decoder_bias)", Functional),
    Recipe("holds the encoder", "self.decoder = HoldsEncoder(self.encoder)", holds_encoder),
    Recipe("registered twice", "decoder.weight = encoder.weight  # and F.linear(x, w.t())", registered_twice),
    Recipe("tied", 'tied.tie(model, "decoder.weight", "encoder.weight.T")', declared),
    Recipe("TiedAutoencoder", 'tied.nn.TiedAutoencoder((64, 16), "tanh")', ready_made),
    Recipe("untied baseline", "decoder = nn.Linear(16, 64)", untied),
)
BY_NAME: Mapping[str, Recipe] = {recipe.name: recipe for recipe in ALL}
RAW = BY_NAME["raw assignment"]
SECOND_PARAMETER = BY_NAME["nn.Parameter(w.t())"]
COPY_HOOK = BY_NAME["hook that copies"]
TIED = BY_NAME["tied"]
UNTIED = BY_NAME["untied baseline"]
