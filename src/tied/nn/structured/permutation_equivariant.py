"""Layers that commute with permutations of their features: with all of them, or with those of a group.

Owns: `SetLinear`, `OrbitLinear`, and finding orbits. Read next: `hashed.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tied.errors import ShapeError, during, short
from tied.nn.init import draw, draw_with_variance
from tied.nn.structured.gather import GatheredLinear, gather
from tied.nn.structured.structured_linear import Options, StructuredLinear

Permutation = Sequence[int] | Tensor


class SetLinear(StructuredLinear):
    """A square linear layer that commutes with every permutation of its features.

    Law: `weight == theta[0] * I + theta[1] * ones`; `layer(x[..., p]) == layer(x)[..., p]` for each permutation `p`.

    These are all matrices with that property: two numbers, whatever the size. The bias is one number, shared by all
    outputs, since a private one would tell them apart.

    Algorithms: `"closed"`, `theta[0] * x + theta[1] * x.sum()`, O(n) time and memory; `"dense"` builds the matrix.

    Shapes:
        theta: `(2,)`: what an output takes from its own input, and from the sum of all. bias: `(1,)`.

    Args:
        features: Width of input and output.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Example:
        >>> layer = SetLinear(3, bias=False)
        >>> _ = layer.theta.data.copy_(torch.tensor([2.0, 1.0]))
        >>> layer.weight.tolist()
        [[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.0]]

    Source:
        Zaheer et al. 2017, Deep Sets, arXiv:1703.06114, lemma 3.
    """

    theta: nn.Parameter
    fast = "closed"

    def __init__(self, features: int, **options: Unpack[Options]) -> None:
        with during(f"SetLinear({features!r})"):
            super().__init__(features, features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return two numbers, whatever the size."""
        return {"theta": (2,)}

    def bias_size(self) -> int:
        """Return one, for all outputs."""
        return 1

    def bias_of_outputs(self) -> Tensor | None:
        """Repeat the one bias."""
        return None if self.bias is None else self.bias.expand(self.out_features)

    def reset_parameters(self) -> None:
        """Draw both numbers so that own input and sum each give half the variance of `nn.Linear`'s outputs.

        Entries as large as `nn.Linear`'s would leave an output next to nothing of its own input.
        """
        draw_with_variance(self.theta[:1], 1 / 6)
        draw_with_variance(self.theta[1:], 1 / (6 * self.in_features))
        draw(self.bias, self.in_features)

    def build(self) -> Tensor:
        """Add to the diagonal what an output takes from its own input."""
        own, shared = self.theta.unbind()
        return torch.eye(self.in_features, device=own.device, dtype=own.dtype) * own + shared

    def multiply(self, input: Tensor) -> Tensor:
        """Add the sum of all inputs to each."""
        own, shared = self.theta.unbind()
        return own * input + shared * input.sum(-1, keepdim=True)


class OrbitLinear(GatheredLinear):
    """A linear layer that commutes with permutations of its inputs and outputs, by sharing alone.

    Law: `layer(x[..., p]) == layer(x)[..., q]` for each generator: `p` of the inputs and `q` of the outputs.

    Entries of the matrix that some product of generators moves to one another are one parameter; so are biases.
    These are all matrices with that property, and the count of parameters is Burnside's. Orbits are numbered by
    their first entry, row by row. The trivial group (one generator that moves nothing) gives a dense layer.

    Shapes:
        theta: `(orbits,)`; index, a buffer that is not stored: `(out_features, in_features)`.
        bias: one for each orbit of outputs.

    Args:
        input_generators: Permutations of the inputs, each a sequence or tensor of all of `0, ..., in_features - 1`.
        output_generators: What each of them does to the outputs; the same as to the inputs where not given.
        bias, device, dtype: As in `StructuredLinear`; the one algorithm is `"dense"`.

    Raises:
        ShapeError: a generator is no permutation, or the lists do not match.

    Example:
        Images of 8 × 8 pixels that may come turned by quarters:

        >>> turn = torch.arange(64).reshape(8, 8).rot90().flatten()
        >>> layer = OrbitLinear([turn])
        >>> layer.theta.numel(), layer.weight.numel()
        (1024, 4096)
        >>> image = torch.rand(64)
        >>> torch.allclose(layer(image[turn]), layer(image)[turn], atol=1e-6)
        True

    Source:
        Ravanbakhsh et al. 2017, Equivariance through parameter-sharing, arXiv:1702.08389, section 3.
    """

    def __init__(
        self,
        input_generators: Iterable[Permutation],
        output_generators: Iterable[Permutation] | None = None,
        **options: Unpack[Options],
    ) -> None:
        with during("OrbitLinear(...)"):
            inputs = _permutations("input_generators", input_generators)
            outputs = inputs if output_generators is None else _permutations("output_generators", output_generators)
            if len(inputs) != len(outputs):
                raise ShapeError(
                    "Each generator needs what it does to the inputs and what it does to the outputs.",
                    found=f"{len(inputs)} input_generators, {len(outputs)} output_generators",
                    expected="as many of one as of the other",
                    fix="write a generator that moves nothing as range(n)",
                )
            self._generators = inputs, outputs
            self._orbits = {name: int(tensor.max()) + 1 for name, tensor in self.fixed().items()}
            super().__init__(len(inputs[0]), len(outputs[0]), **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each orbit of entries."""
        return {"theta": (self._orbits["index"],)}

    def fixed(self) -> dict[str, Tensor]:
        """Number the orbits of the matrix's entries, and those of the outputs."""
        inputs, outputs = (torch.tensor(side, device="cpu") for side in self._generators)
        places = outputs[:, :, None] * inputs.shape[1] + inputs[:, None]
        index = orbits(places.flatten(1)).reshape(places.shape[1:])
        return {"index": index, "bias_index": orbits(outputs)}

    def bias_size(self) -> int:
        """Return how many orbits the outputs form."""
        return self._orbits["bias_index"]

    def bias_of_outputs(self) -> Tensor | None:
        """Give each output the bias of its orbit."""
        return None if self.bias is None else gather(self.bias, self.settled("bias_index"))

    def extra_repr(self) -> str:
        """Show how many orbits the entries form."""
        return f"{super().extra_repr()}, orbits={self._orbits['index']}"


def orbits(permutations: Tensor) -> Tensor:
    """Number the orbits of the group that permutations generate, in the order of their first members.

    >>> orbits(torch.tensor([[1, 0, 2, 3, 4], [0, 1, 3, 2, 4]]))
    tensor([0, 0, 1, 1, 2])

    Shapes:
        permutations: `(generators, n)`; result: `(n,)`.
    """
    both_ways = torch.cat((permutations, permutations.argsort(1)))
    first = torch.arange(permutations.shape[1], device=permutations.device)
    while True:
        least = first
        for moved in both_ways:
            least = torch.minimum(least, least[moved])
        lower = first.scatter_reduce(0, first, least, "amin")  # all that have found each other learn what one knows
        lower = lower[lower]
        if torch.equal(lower, first):
            return torch.unique(first, return_inverse=True)[1]
        first = lower


def _permutations(name: str, generators: Iterable[Permutation]) -> tuple[tuple[int, ...], ...]:
    """Return generators as tuples of integers, all of them permutations of one length."""
    if not isinstance(generators, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _no_permutation(name, f"{generators!r}", "a list of permutations")
    found = tuple(_permutation(f"{name}[{number}]", each) for number, each in enumerate(generators))
    if not found:
        raise _no_permutation(name, "no generators", "at least one; range(n) moves nothing")
    for number, each in enumerate(found):
        if len(each) != len(found[0]):
            raise _no_permutation(f"{name}[{number}]", f"{len(each)} places", f"{len(found[0])}, as {name}[0]")
    return found


def _permutation(name: str, given: Any) -> tuple[int, ...]:
    try:
        places = given if isinstance(given, Tensor) else torch.tensor(list(given), device="cpu")
    except (TypeError, ValueError) as error:
        raise _no_permutation(name, f"{given!r}", "a sequence of whole numbers") from error
    whole = places.dim() == 1 and places.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not whole or not places.numel() or sorted(places.tolist()) != list(range(places.numel())):
        raise _no_permutation(name, f"{places.tolist()}", "each of the numbers from 0 to n - 1 once")
    return tuple(places.tolist())


def _no_permutation(name: str, found: str, expected: str) -> ShapeError:
    return ShapeError(
        f"'{name}' does not permute the features.",
        found=short(found),
        expected=expected,
        fix="torch.arange(n).roll(1), or torch.arange(h * w).reshape(h, w).rot90().flatten()",
    )
