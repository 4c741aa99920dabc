"""Every proof proves; and where the library is broken, it says so.

The oracles here are counts by Burnside's lemma, and transforms written out as loops.
"""

import pytest
import torch

from tied.study.proofs import (
    catalogue,
    change_of_units,
    descent,
    initial_loss,
    operators,
    pca,
    popular_recipe,
    rotation,
)
from tied.study.proofs.proof import Proof
from tied.study.recipes import SECOND_PARAMETER, UNTIED

MEASUREMENTS: dict[str, list] = {}


def measurements(proof: Proof) -> list:
    """Measure each proof once for all tests."""
    if proof.name not in MEASUREMENTS:
        MEASUREMENTS[proof.name] = list(proof.measure())
    return MEASUREMENTS[proof.name]


@pytest.mark.parametrize("proof", catalogue.PROOFS, ids=lambda proof: proof.name)
def test_every_claim_is_proven(proof):
    found = measurements(proof)
    assert found
    for measurement in found:
        assert measurement.proven, measurement


@pytest.mark.parametrize("proof", catalogue.PROOFS, ids=lambda proof: proof.name)
def test_words_fit_the_table(proof):
    assert len(f"{proof.name}: {proof.title}") <= 62
    for measurement in measurements(proof):
        assert len(measurement.claim) <= 60
        assert len(measurement.control.what) <= 48


def test_names_and_claims_are_unique():
    names = [proof.name for proof in catalogue.PROOFS]
    claims = [measurement.claim for proof in catalogue.PROOFS for measurement in measurements(proof)]
    assert len(set(names)) == len(names)
    assert len(set(claims)) == len(claims)


# Where the library is broken, the proofs do not hold


def proven(measure) -> list[bool]:
    return [measurement.proven for measurement in measure()]


def test_a_cut_tie_is_no_adjoint(monkeypatch):
    monkeypatch.setattr(operators, "tie", lambda *_: None)
    assert proven(operators.transposed_convolution_is_the_adjoint) == [False]


def test_a_wrong_gather_is_no_convolution(monkeypatch):
    wrong = operators.toeplitz_index().roll(1, 1)
    monkeypatch.setattr(operators, "toeplitz_index", lambda *, reverse=False: wrong)
    assert proven(operators.toeplitz_is_convolution) == [False, False]


def test_a_lost_gradient_is_no_adjoint(monkeypatch):
    monkeypatch.setattr(operators, "LINEAR", (*operators.LINEAR, "w + w.detach()"))
    assert proven(operators.gradients_are_adjoints) == [False]


def test_an_untied_network_does_not_turn(monkeypatch):
    untied = rotation.reading(tied=False)
    monkeypatch.setattr(rotation, "reading", lambda *, tied: untied)
    assert proven(rotation.turned_digits_are_read_alike) == [False, False]


def test_untied_layers_are_not_projected(monkeypatch):
    monkeypatch.setattr(descent, "tie_layers", lambda *_, **__: None)
    assert proven(descent.tied_training_is_projected_training)[0] is False


@pytest.mark.parametrize("impostor", [SECOND_PARAMETER, UNTIED], ids=lambda one: one.name)
def test_another_recipe_is_not_one_parameter(monkeypatch, impostor):
    monkeypatch.setattr(popular_recipe, "TIED", impostor)
    assert not any(proven(popular_recipe.trains_as_one_parameter))
    assert not any(proven(popular_recipe.stays_tied))


def test_an_untied_autoencoder_is_not_pca(monkeypatch):
    def impostor(codes, *, fit=pca.fit, **known):
        return fit(codes, **known | {"tie": False})

    monkeypatch.setattr(pca, "fit", impostor)
    assert proven(pca.finds_pca)[1:] == [False, False]  # the error alone is the same, untied
    assert proven(pca.decay_counts_per_use) == [False, False]


def test_statistics_that_are_not_given_back_do_not_follow(monkeypatch):
    monkeypatch.setattr(change_of_units.RevIN, "denormalize", lambda self, y, statistics: y)
    assert proven(change_of_units.forecasts_change_with_their_units) == [False, False]


def test_a_large_start_is_no_guess(monkeypatch):
    monkeypatch.setattr(initial_loss, "TiedEmbedding", torch.nn.Embedding)
    assert proven(initial_loss.first_loss_is_that_of_a_guess) == [False]


# What the proofs are made of


def test_orbits_are_as_many_as_burnside_says():
    pixels, units = rotation.turned_pixels(), rotation.turned_units()
    assert int(rotation.orbits(pixels, pixels).max()) + 1 == (64**2 + 0 + 0 + 0) // 4 == 1024
    assert int(rotation.orbits(units, pixels).max()) + 1 == 256 * 64 // 4
    assert int(rotation.orbits(rotation.turned_classes(), units).max()) + 1 == 10 * 256 // 4
    middle = torch.arange(9).reshape(3, 3).rot90().flatten()  # its centre stays in place
    assert int(rotation.orbits(middle).max()) + 1 == (9 + 1 + 1 + 1) // 4


def test_orbits_do_not_change_when_everything_turns():
    pixels, units = rotation.turned_pixels(), rotation.turned_units()
    index = rotation.orbits(units, pixels)
    assert torch.equal(index[units][:, pixels], index)
    assert not torch.equal(index[:, pixels], index)


def test_a_quarter_turn_is_a_quarter_turn():
    image = torch.arange(64)
    turn = rotation.turned_pixels()
    assert torch.equal(image[turn].reshape(8, 8), image.reshape(8, 8).rot90())
    assert torch.equal(image[turn][turn][turn][turn], image)


def test_the_tied_network_has_a_quarter_of_the_weights():
    tied, untied = rotation.Classifier(tied=True), rotation.Classifier(tied=False)
    assert sum(p.numel() for p in tied.parameters()) == 21_258
    assert sum(p.numel() for p in untied.parameters()) == 85_002


def test_the_tied_network_turns_with_its_input():
    model, images = rotation.Classifier(tied=True).double(), torch.rand(5, 64, dtype=torch.float64)
    hidden = model.layers[0](images)
    turned = model.layers[0](images[:, rotation.turned_pixels()])
    assert torch.allclose(turned, hidden[:, rotation.turned_units()], atol=1e-12)
    assert not torch.allclose(turned, hidden)


def test_reading_leaves_the_random_numbers_alone():
    before = torch.random.get_rng_state()
    rotation.reading.__wrapped__(tied=True)
    pca.fit.__wrapped__(2, tie=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_toeplitz_index_by_hand():
    index = operators.toeplitz_index()
    for row in range(index.shape[0]):
        for column in range(index.shape[1]):
            tap = column - row
            assert index[row, column] == (tap if 0 <= tap < operators.TAPS else -1)
    assert torch.equal(
        operators.toeplitz_index(reverse=True).where(index < 0, 4 - index), index.where(index < 0, 4 - index)
    )


def test_projection_is_the_mean_of_the_steps():
    """One step by hand: each use steps on its own, then all are put to their mean."""
    model = descent.Deep(tied=False)
    gradients = torch.autograd.grad(model.loss(), list(model.parameters()))
    expected = model.weights()[0] - 0.1 * torch.stack(gradients).mean(0)
    monkey = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped = descent._trained(model, monkey, 1, lambda: None)
    assert torch.allclose(stepped.mean(0), expected, atol=1e-15)
    assert model.weights().shape == (4, 6, 6)


# The list


def test_chosen():
    assert catalogue.chosen("*") == catalogue.PROOFS
    assert [proof.name for proof in catalogue.chosen("de*")] == ["decay", "descent"]


def test_nothing_chosen_names_the_nearest():
    with pytest.raises(catalogue.AddressError) as caught:
        catalogue.chosen("decai")
    assert caught.value.fix == "Did you mean 'decay'?"
    with pytest.raises(catalogue.AddressError) as caught:
        catalogue.chosen("x")
    assert caught.value.fix.startswith("There are: pca, decay, ")
