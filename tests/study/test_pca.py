"""The tied linear autoencoder finds PCA, exactly; the untied one finds its subspace only.

With decoder = encoder.T the best reconstruction W.T @ W @ x is the orthogonal projection onto the leading
principal directions (Baldi and Hornik 1989), so the loss is the sum of the discarded eigenvalues and the
rows of W are orthonormal, though nothing asks for it. The oracle is numpy's `eigh`.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tied.nn import TiedAutoencoder
from tied.study.digits import raw

DISCARDED = {4: 616.1911300563, 8: 391.7947361150, 16: 180.9397032574}
"""The sum of all but the k largest eigenvalues of the digits' covariance."""
CODES = list(DISCARDED)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    images = raw()[0].reshape(1797, 64).astype(np.float64)
    return images - images.mean(axis=0)


@pytest.fixture(scope="module")
def principal(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the covariance, largest first, and their directions as columns."""
    values, directions = np.linalg.eigh(pixels.T @ pixels / len(pixels))
    return values[::-1], directions[:, ::-1]


def trained(pixels: np.ndarray, codes: int, *, tie: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Train to the minimum with L-BFGS; return the loss per image, the encoder and the decoder."""
    torch.manual_seed(0)
    model = TiedAutoencoder((64, codes), "linear", tie=tie, bias=False, dtype=torch.float64)
    covariance = torch.from_numpy(pixels.T @ pixels / len(pixels))
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        lr=1,
        max_iter=5000,
        max_eval=10000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        # the mean of |x - f(x)|² over all x, for a linear f: trace((I - M) C (I - M)ᵀ), M = f applied to I
        rest = torch.eye(64, dtype=torch.float64) - model(torch.eye(64, dtype=torch.float64)).T
        return torch.trace(rest @ covariance @ rest.T)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        centered = torch.from_numpy(pixels)
        per_image = (centered - model(centered)).square().sum(1).mean()
    return float(per_image), *(weight.detach().numpy() for weight in weights(model))


def weights(model: TiedAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    encoder, decoder = model.encoder[0], model.decoder[0]
    assert isinstance(encoder, nn.Linear)
    assert isinstance(decoder, nn.Linear)
    return encoder.weight, decoder.weight


def largest_angle(columns: np.ndarray, others: np.ndarray) -> float:
    """The largest principal angle in radians, by its sine (the cosine cannot tell small angles)."""
    first, _ = np.linalg.qr(columns)
    second, _ = np.linalg.qr(others)
    return float(np.arcsin(min(1.0, np.linalg.norm(second - first @ (first.T @ second), ord=2))))


def test_eigenvalues_are_those_of_the_digits(principal):
    for codes, discarded in DISCARDED.items():
        assert principal[0][codes:].sum() == pytest.approx(discarded, rel=1e-12)


@pytest.mark.parametrize("codes", CODES)
def test_tied_is_pca(pixels, principal, codes):
    values, directions = principal
    loss, encoder, decoder = trained(pixels, codes, tie=True)
    assert loss == pytest.approx(values[codes:].sum(), rel=1e-8)
    assert largest_angle(directions[:, :codes], encoder.T) < 1e-4
    np.testing.assert_allclose(encoder @ encoder.T, np.eye(codes), atol=1e-5)
    np.testing.assert_array_equal(decoder, encoder.T)


@pytest.mark.parametrize("codes", CODES)
def test_untied_has_the_same_loss_and_no_symmetry(pixels, principal, codes):
    values, directions = principal
    loss, encoder, decoder = trained(pixels, codes, tie=False)
    assert loss == pytest.approx(values[codes:].sum(), rel=1e-7)
    assert largest_angle(directions[:, :codes], decoder) < 1e-3
    assert np.linalg.norm(decoder - encoder.T) / np.linalg.norm(decoder) > 0.1
