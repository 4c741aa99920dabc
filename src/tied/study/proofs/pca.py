"""The tied linear autoencoder finds PCA, and weight decay on it counts once per use.

Owns: two proofs. The oracle is numpy's `eigh` of the digits' covariance; no autoencoder takes part in it.
Read next: `descent.py`.

With decoder = encoder.T the best reconstruction WᵀWx is the orthogonal projection onto the leading principal
directions, so the error is the sum of the discarded eigenvalues and the rows of W are orthonormal, though
nothing asks for it. An untied one reaches the same error with weights that need not be alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from tied.nn import TiedAutoencoder
from tied.study.digits import raw
from tied.study.proofs.proof import Control, Measurement, at_most

PIXELS = 64
CODES = 8
DECAY = 10.0
"""λ of the weight decay, in squared grey levels (0..16) as the eigenvalues are."""


@dataclass(frozen=True)
class Principal:
    """The digits' principal components.

    Shapes:
        covariance: `(64, 64)`, of grey levels 0..16; values: `(64,)`, largest first; directions: `(64, 64)`,
        as columns.
    """

    covariance: np.ndarray
    values: np.ndarray
    directions: np.ndarray

    def discarded(self, codes: int) -> float:
        """Return the error of the best linear code of that size: the sum of the other eigenvalues."""
        return float(self.values[codes:].sum())

    def decayed(self, codes: int, decay: float) -> float:
        """Return the least error + λ(‖A‖² + ‖B‖²) of an untied code, λ below the kept eigenvalues.

        Source:
            Kunin et al. 2019, Loss Landscapes of Regularized Linear Autoencoders, arXiv:1901.08168, theorem 2.
        """
        kept = self.values[:codes]
        return self.discarded(codes) + float((2 * decay - decay**2 / kept).sum())


@cache
def principal() -> Principal:
    """Compute the principal components of the 1797 digits with numpy."""
    pixels = raw()[0].reshape(-1, PIXELS).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    covariance = pixels.T @ pixels / len(pixels)
    values, directions = np.linalg.eigh(covariance)
    return Principal(covariance, values[::-1], directions[:, ::-1])


@dataclass(frozen=True)
class Fit:
    """A trained linear autoencoder.

    Shapes:
        encoder: `(codes, 64)`; decoder: `(64, codes)`.

    Attributes:
        error: Mean over the digits of the squared distance, in squared grey levels.
        loss: The error and the weight decay.
    """

    error: float
    loss: float
    encoder: np.ndarray
    decoder: np.ndarray


@cache
def fit(codes: int, *, tie: bool, decay: float = 0.0) -> Fit:
    """Train a linear autoencoder to its minimum with L-BFGS, in float64.

    Args:
        codes: Size of the code.
        tie: Whether the decoder's weight is the encoder's, transposed.
        decay: λ of the penalty λ‖p‖², once for each Parameter.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TiedAutoencoder((PIXELS, codes), "linear", tie=tie, bias=False, dtype=torch.float64)
    parameters = list(model.parameters())
    covariance, identity = torch.from_numpy(principal().covariance), torch.eye(PIXELS, dtype=torch.float64)

    def error() -> torch.Tensor:
        # the mean of |x - f(x)|² over all x, for a linear f: trace((I - M) C (I - M)ᵀ), M = f applied to I
        rest = identity - model(identity).T
        return torch.trace(rest @ covariance @ rest.T)

    def loss() -> torch.Tensor:
        return error() + decay * torch.stack([parameter.square().sum() for parameter in parameters]).sum()

    _minimize(loss, parameters)
    weights = (layer.weight for layer in (model.encoder[0], model.decoder[0]) if isinstance(layer, nn.Linear))
    encoder, decoder = (weight.detach().clone().numpy() for weight in weights)
    return Fit(error().item(), loss().item(), encoder, decoder)


def _minimize(loss: Callable[[], torch.Tensor], parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters,
        lr=1,
        max_iter=2000,
        max_eval=4000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]  # torch says float, and documents a Tensor


def largest_angle(columns: np.ndarray, others: np.ndarray) -> float:
    """Return the largest principal angle in radians, by its sine (the cosine cannot tell small angles)."""
    first, _ = np.linalg.qr(columns)
    second, _ = np.linalg.qr(others)
    return float(np.arcsin(min(1.0, np.linalg.norm(second - first @ (first.T @ second), ord=2))))


def unevenness(encoder: np.ndarray) -> float:
    """Return how far the rows are from orthonormal: the largest entry of `|W Wᵀ - I|`."""
    return float(np.abs(encoder @ encoder.T - np.eye(len(encoder))).max())


def relative(figure: float, truth: float) -> float:
    """Return the relative difference."""
    return abs(figure - truth) / abs(truth)


def finds_pca() -> Iterator[Measurement]:
    """Compare the trained weights with the eigenvectors of the covariance."""
    truth, tied, untied = principal(), fit(CODES, tie=True), fit(CODES, tie=False)
    best, leading = truth.discarded(CODES), truth.directions[:, :CODES]
    yield Measurement(
        "its error is the sum of the discarded eigenvalues",
        relative(tied.error, best),
        at_most(1e-8),
        Control("eigenvalues of one code less", relative(tied.error, truth.discarded(CODES - 1))),
    )
    yield Measurement(
        "its weight spans the principal directions: angle",
        largest_angle(leading, tied.encoder.T),
        at_most(1e-4),
        Control("encoder of the untied twin", largest_angle(leading, untied.encoder.T)),
        note=f"The untied twin reaches the same error (relative difference {relative(untied.error, best):.0e}).",
    )
    yield Measurement(
        "its rows are orthonormal, with no constraint",
        unevenness(tied.encoder),
        at_most(1e-5),
        Control("encoder of the untied twin", unevenness(untied.encoder)),
    )


def decay_counts_per_use() -> Iterator[Measurement]:
    """Compare weight decay λ on both weights of an untied autoencoder with 2λ on the one tied weight."""
    once, twice = fit(CODES, tie=True, decay=DECAY), fit(CODES, tie=True, decay=2 * DECAY)
    untied = fit(CODES, tie=False, decay=DECAY)
    yield Measurement(
        "untied with decay λ has the loss of tied with 2λ",
        relative(twice.loss, untied.loss),
        at_most(1e-6),
        Control("tied with λ", relative(once.loss, untied.loss)),
        note=f"Closed form of that loss: relative difference {relative(untied.loss, _closed_form()):.0e}.",
    )
    yield Measurement(
        "squared singular values are 1 - λ/eigenvalue",
        _shrinkage_error(twice),
        at_most(1e-6),
        Control("tied with λ", _shrinkage_error(once)),
    )


def _closed_form() -> float:
    return principal().decayed(CODES, DECAY)


def _shrinkage_error(found: Fit) -> float:
    expected = 1 - DECAY / principal().values[:CODES]
    return float(np.abs(np.linalg.svd(found.encoder, compute_uv=False) ** 2 - expected).max())
