"""All recipes compute the same at first; what was known of each of them by hand, the demo must measure."""

import pytest
import torch

from tied.study.demo.properties import properties
from tied.study.digits import load
from tied.study.recipes import ALL, BY_NAME, RAW, TIED, start

KNOWN = {
    # recipe: parameters, gradient from both uses, deepcopy, double, save_load
    "nn.Parameter(w.t())": (2128, False, "no", "no", "half"),
    ".data alias": (2128, False, "no", "no", "half"),
    "hook that copies": (2128, False, "no", "half", "half"),
    "functional form": (1104, True, "yes", "yes", "yes"),
    "holds the encoder": (1104, True, "yes", "yes", "yes"),
    "registered twice": (1104, True, "yes", "yes", "half"),
    "tied": (1104, True, "yes", "yes", "yes"),
    "TiedAutoencoder": (1104, True, "yes", "yes", "yes"),
    "untied baseline": (2128, False, "no", "no", "no"),
}
BUILT = [recipe for recipe in ALL if recipe is not RAW]


def test_every_recipe_is_known():
    assert list(BY_NAME) == [RAW.name, *KNOWN]


@pytest.mark.parametrize("recipe", BUILT, ids=lambda recipe: recipe.name)
def test_same_start(recipe):
    images = load(torch.float64).images[:8]
    expected = start(5, torch.float64)(images)
    torch.testing.assert_close(recipe.model(5, torch.float64)(images), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("recipe", BUILT, ids=lambda recipe: recipe.name)
def test_what_is_known_is_measured(recipe):
    found = properties(recipe, seed=2, images=load().images)
    expected = KNOWN[recipe.name]
    assert (found.parameters, found.gradient_from_both, *found.survival.values()) == expected
    assert list(found.survival) == ["deepcopy", "double", "save_load"]
    assert (found.steps_difference < 1e-12) == expected[1]
    assert found.steps_difference < 1e-12 or found.steps_difference > 0.01


def test_raw_assignment_is_refused_by_torch():
    found = properties(RAW, seed=2, images=load().images)
    assert found.error.startswith("TypeError: cannot assign 'torch.FloatTensor' as parameter 'weight'")
    assert found.parameters is None


def test_building_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    TIED.model(0)
    assert torch.equal(torch.get_rng_state(), before)
