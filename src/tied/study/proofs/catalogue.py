"""The list of proofs, in the order in which they are told.

Owns: names, titles and sources. Read next: `run.py`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from tied.errors import AddressError, nearest
from tied.study.proofs import change_of_units, descent, initial_loss, operators, pca, popular_recipe, rotation
from tied.study.proofs.proof import Proof

PROOFS: tuple[Proof, ...] = (
    Proof(
        "pca",
        "A tied linear autoencoder finds PCA",
        pca.finds_pca,
        "Baldi and Hornik 1989, Neural Networks 2; Plaut 2018, arXiv:1804.10253",
    ),
    Proof(
        "decay",
        "Weight decay on a tied parameter counts once per use",
        pca.decay_counts_per_use,
        "Kunin et al. 2019, arXiv:1901.08168",
    ),
    Proof(
        "adjoint",
        "A convolution's weight, tied, makes its adjoint",
        operators.transposed_convolution_is_the_adjoint,
    ),
    Proof("toeplitz", "A layer tied along its diagonals is a convolution", operators.toeplitz_is_convolution),
    Proof("gradient", "The gradient through a tie is the adjoint", operators.gradients_are_adjoints),
    Proof(
        "rotation",
        "Tie over quarter turns, get the symmetry",
        rotation.turned_digits_are_read_alike,
        "Ravanbakhsh et al. 2017, arXiv:1702.08389",
    ),
    Proof(
        "units",
        "Shared statistics: forecasts change with their units",
        change_of_units.forecasts_change_with_their_units,
        "Kim et al. 2022, ICLR, section 3",
    ),
    Proof(
        "start",
        "A tied head starts as a guess",
        initial_loss.first_loss_is_that_of_a_guess,
        "Press and Wolf 2017, arXiv:1608.05859",
    ),
    Proof("descent", "Training a shared weight is projected training", descent.tied_training_is_projected_training),
    Proof("recipe", "Tied trains as one parameter", popular_recipe.trains_as_one_parameter),
    Proof("copies", "Copies and casts stay tied", popular_recipe.stays_tied),
)


def chosen(pattern: str) -> tuple[Proof, ...]:
    """Return the proofs whose names match a pattern: `"pca"`, `"d*"`, `"*"`.

    Raises:
        AddressError: none does; the message names the nearest.
    """
    found = tuple(proof for proof in PROOFS if fnmatchcase(proof.name, pattern))
    if found:
        return found
    names = [proof.name for proof in PROOFS]
    near = nearest(pattern, names)
    raise AddressError(
        f"'{pattern}' is the name of no proof.",
        found=f"'{pattern}'",
        expected=", ".join(names),
        fix=f"Did you mean {near}?" if near else f"There are: {', '.join(names)}.",
    )
