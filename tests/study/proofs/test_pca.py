"""The tied linear autoencoder finds PCA, exactly, at three sizes of code; decay counts once per use.

`tied.study.proofs.pca` measures one size; the figures pinned here were computed apart from it, with scipy.
"""

import numpy as np
import pytest

from tied.study.proofs import pca

DISCARDED = {4: 616.1911300563, 8: 391.7947361150, 16: 180.9397032574}
"""The sum of all but the k largest eigenvalues of the digits' covariance."""
DECAYED = {4: 694.10084093, 8: 460.20599498, 16: 233.89464645}
"""The least error + λ(‖A‖² + ‖B‖²), for λ a tenth of the k-th eigenvalue."""
CODES = list(DISCARDED)


def test_eigenvalues_are_those_of_the_digits():
    truth = pca.principal()
    assert (np.diff(truth.values) <= 0).all()
    np.testing.assert_allclose(truth.covariance @ truth.directions, truth.directions * truth.values, atol=1e-10)
    for codes, discarded in DISCARDED.items():
        assert truth.discarded(codes) == pytest.approx(discarded, rel=1e-12)


@pytest.mark.parametrize("codes", CODES)
def test_tied_is_pca(codes):
    truth, found = pca.principal(), pca.fit(codes, tie=True)
    assert found.error == found.loss == pytest.approx(truth.discarded(codes), rel=1e-8)
    assert pca.largest_angle(truth.directions[:, :codes], found.encoder.T) < 1e-4
    np.testing.assert_allclose(found.encoder @ found.encoder.T, np.eye(codes), atol=1e-5)
    np.testing.assert_array_equal(found.decoder, found.encoder.T)


@pytest.mark.parametrize(
    "codes", [pytest.param(4, marks=pytest.mark.slow), 8, pytest.param(16, marks=pytest.mark.slow)]
)
def test_untied_has_the_same_error_and_no_symmetry(codes):
    truth, found = pca.principal(), pca.fit(codes, tie=False)
    assert found.error == pytest.approx(truth.discarded(codes), rel=1e-7)
    assert pca.largest_angle(truth.directions[:, :codes], found.decoder) < 1e-3
    assert np.linalg.norm(found.decoder - found.encoder.T) / np.linalg.norm(found.decoder) > 0.1


def test_the_error_is_that_of_the_digits():
    """The proof computes with the covariance; here the digits themselves are reconstructed."""
    pixels = pca.raw()[0].reshape(-1, 64).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    found = pca.fit(8, tie=True)
    rest = pixels - pixels @ found.encoder.T @ found.decoder.T
    assert found.error == pytest.approx((rest**2).sum(axis=1).mean(), rel=1e-10)


@pytest.mark.parametrize("codes", CODES)
def test_decay_counts_per_use(codes):
    decay = pca.principal().values[codes - 1] / 10
    untied, twice = pca.fit(codes, tie=False, decay=decay), pca.fit(codes, tie=True, decay=2 * decay)
    assert pca.principal().decayed(codes, decay) == pytest.approx(DECAYED[codes], rel=1e-10)
    assert untied.loss == pytest.approx(DECAYED[codes], rel=1e-9)
    assert twice.loss == pytest.approx(DECAYED[codes], rel=1e-9)
    np.testing.assert_allclose(untied.decoder, untied.encoder.T, atol=1e-5)


def test_largest_angle():
    first, tilted = np.eye(3)[:, :2], np.array([[1.0, 0], [0, np.cos(1e-6)], [0, np.sin(1e-6)]])
    assert pca.largest_angle(first, tilted) == pytest.approx(1e-6, rel=1e-6)
    assert pca.largest_angle(first, np.eye(3)[:, 1:]) == pytest.approx(np.pi / 2)
