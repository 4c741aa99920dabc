"""The structured layers, each beside its matrix written out by hand, entry by entry, in plain torch."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from tied.nn import (
    BlockCirculantLinear,
    BroadcastLinear,
    CirculantLinear,
    CodebookLinear,
    HashedLinear,
    KroneckerLinear,
    OrbitLinear,
    SetLinear,
    SymmetricLinear,
    SymmetryWarning,
    ToeplitzLinear,
)

Tensors = dict[str, Tensor]
Entry = Callable[[Tensors, int, int], Tensor]
Law = tuple[str, Callable[[nn.Module], None]]


# What only one kind of layer does: words, and a check of a layer


def moves(words: str, inputs: Sequence[int], outputs: Sequence[int], bias: bool = False) -> Law:
    """Permuting the inputs permutes the outputs; without the bias, unless it is shared too."""

    def check(layer: nn.Module) -> None:
        def f(x: Tensor) -> Tensor:
            return layer(x) if bias else layer(x) - layer.bias

        x = torch.randn(3, len(inputs), dtype=torch.float64)
        torch.testing.assert_close(f(x[:, list(inputs)]), f(x)[:, list(outputs)], rtol=0, atol=1e-12)

    return words, check


def ranks(words: str, rank: int, arrange: Callable[[Tensor], Tensor] = lambda weight: weight) -> Law:
    """The matrix, arranged in some way, has this rank."""

    def check(layer: nn.Module) -> None:
        assert torch.linalg.matrix_rank(arrange(layer.weight.detach())) == rank

    return words, check


def equals(words: str, one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> Law:
    """Two things made of the matrix are equal."""

    def check(layer: nn.Module) -> None:
        assert torch.equal(one(layer.weight.detach()), other(layer.weight.detach()))

    return words, check


def counts(words: str, most: int) -> Law:
    """The matrix has no more values than this, signs aside."""

    def check(layer: nn.Module) -> None:
        assert 1 < layer.weight.detach().abs().unique().numel() <= most

    return words, check


@dataclass(frozen=True)
class Scheme:
    """One layer under test, and the entry `(i, j)` of its matrix by hand."""

    name: str
    make: Callable[..., nn.Module]
    shape: tuple[int, int]
    entry: Entry
    algorithms: tuple[str, ...] = ("dense",)
    bias: Callable[[Tensors, int], Tensor] = lambda tensors, i: tensors["bias"][i]
    own: Law | None = None

    def layer(self, **options: object) -> nn.Module:
        """A new layer in float64, unless another dtype is asked for."""
        return self.make(**{"dtype": torch.float64, **options})

    def matrix(self, tensors: Tensors) -> Tensor:
        """The matrix of shape `(out, in)`, entry by entry."""
        rows, columns = self.shape
        return torch.stack([torch.stack([self.entry(tensors, i, j) for j in range(columns)]) for i in range(rows)])

    def output(self, tensors: Tensors, x: Tensor) -> Tensor:
        """What the layer computes, with the matrix by hand."""
        output = x @ self.matrix(tensors).T
        if "bias" not in tensors:
            return output
        return output + torch.stack([self.bias(tensors, i) for i in range(self.shape[0])])


def leaves(layer: nn.Module) -> Tensors:
    """The layer's parameters as new leaves, and its buffers."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
    return {**parameters, **dict(layer.named_buffers())}


# By hand


def toeplitz(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][i - j + 7 - 1]


def circulant(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][(i - j) % 7]


def block_circulant(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][i // 3, j // 3, (i % 3 - j % 3) % 3]


def kronecker(t: Tensors, i: int, j: int) -> Tensor:
    return t["left"][i // 2, j // 3] * t["right"][i % 2, j % 3]


def given_factors(t: Tensors, i: int, j: int) -> Tensor:
    return t["left"][i // 5, j // 7] * t["right"][i % 5, j % 7]


def symmetric(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][sum(range(max(i, j) + 1)) + min(i, j)]


def set_of(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][0] * (i == j) + t["theta"][1]


def splitmix(seed: int, position: int) -> int:
    """SplitMix64 in Python's own integers."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def hashed(t: Tensors, i: int, j: int) -> Tensor:
    h = splitmix(3, i * 7 + j)
    return t["theta"][(h >> 1) % 6] * (-1 if h & 1 else 1)


def codebook(t: Tensors, i: int, j: int) -> Tensor:
    return t["theta"][int(t["codes"][i, j])]


def broadcast(per: str, private: str | None = None) -> Entry:
    def entry(t: Tensors, i: int, j: int) -> Tensor:
        theta = {"input": j, "output": i, "scalar": 0, "diagonal": i}[per]
        value = t["theta"][theta] * (i == j if per == "diagonal" else 1)
        if private == "scale":
            value = value * t["scale"][j if per == "output" else i]
        if private == "sign":
            value = value * (-1 if splitmix(5, i * 7 + j) & 1 else 1)
        return value

    return entry


def quietly(*sizes: int, **options: object) -> BroadcastLinear:
    """Build without the warning of equal outputs, which has its own tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        return BroadcastLinear(*sizes, **options)


TURN = torch.arange(9).reshape(3, 3).rot90().flatten()
FLIP = torch.arange(9).reshape(3, 3).flip(0).flatten()
CORNER_OR_EDGE = [0, 1, 0, 1, 2, 1, 0, 1, 0]  # the orbits of nine pixels under quarter turns


def group(generators: list[tuple[list[int], list[int]]]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All products of generators, each a pair of permutations of inputs and outputs."""
    found = {tuple(tuple(range(len(side))) for side in generators[0])}
    while True:
        more = {
            (tuple(p[k] for k in inputs), tuple(q[k] for k in outputs))
            for inputs, outputs in found
            for p, q in generators
        } | found
        if more == found:
            return found
        found = more


def orbit(generators: list[tuple[list[int], list[int]]]) -> Entry:
    """An entry is the number of the first entry that the group moves it to; numbers count first entries."""
    elements = group(generators)
    inputs, outputs = (range(len(side)) for side in generators[0])
    first = {(i, j): min((q[i], p[j]) for p, q in elements) for i, j in product(outputs, inputs)}
    numbers = {place: number for number, place in enumerate(sorted(set(first.values())))}
    return lambda t, i, j: t["theta"][numbers[first[i, j]]]


SHIFT = [[1, 2, 3, 0], [1, 0]]  # four inputs around a circle, two outputs that change places

PIXELS = (TURN.tolist(), TURN.tolist())
DIAGONALS = equals("each entry is that before it on its diagonal", lambda w: w[1:, 1:], lambda w: w[:-1, :-1])
RANK_ONE = ranks("all outputs are multiples of one", 1)
FULL = ranks("full rank", 7)
SIGNED = equals("signs aside, all outputs are one", lambda w: w.abs(), lambda w: w.abs()[:1].expand_as(w))
SIGNED_COLUMNS = equals("signs aside, all inputs are one", lambda w: w.abs(), lambda w: w.abs()[:, :1].expand_as(w))


def blocks(w: Tensor) -> Tensor:
    """Van Loan's arrangement, in which a Kronecker product of factors of shape (2, 3) has rank 1."""
    return w.unflatten(0, (2, 2)).unflatten(2, (3, 3)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def blocks_of_ten_by_fourteen(w: Tensor) -> Tensor:
    return w.unflatten(0, (2, 5)).unflatten(2, (2, 7)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


SCHEMES = [
    Scheme("ToeplitzLinear wide", partial(ToeplitzLinear, 7, 5), (5, 7), toeplitz, ("fft", "dense"), own=DIAGONALS),
    Scheme("ToeplitzLinear tall", partial(ToeplitzLinear, 7, 10), (10, 7), toeplitz, ("fft", "dense"), own=DIAGONALS),
    Scheme(
        "CirculantLinear",
        partial(CirculantLinear, 7),
        (7, 7),
        circulant,
        ("fft", "dense"),
        own=moves("equivariance: a shift around the circle", [6, 0, 1, 2, 3, 4, 5], [6, 0, 1, 2, 3, 4, 5]),
    ),
    Scheme(
        "BlockCirculantLinear",
        partial(BlockCirculantLinear, 9, 6, 3),
        (6, 9),
        block_circulant,
        ("fft", "dense"),
        own=moves("equivariance: a shift of all blocks", [2, 0, 1, 5, 3, 4, 8, 6, 7], [2, 0, 1, 5, 3, 4]),
    ),
    Scheme(
        "KroneckerLinear",
        partial(KroneckerLinear, 9, 4),
        (4, 9),
        kronecker,
        ("factors", "dense"),
        own=ranks("its blocks are multiples of one", 1, blocks),
    ),
    Scheme(
        "KroneckerLinear given",
        partial(KroneckerLinear, 14, 10, in_factors=(2, 7), out_factors=(2, 5)),
        (10, 14),
        given_factors,
        ("factors", "dense"),
        own=ranks("its blocks are multiples of one", 1, blocks_of_ten_by_fourteen),
    ),
    Scheme(
        "SymmetricLinear",
        partial(SymmetricLinear, 6),
        (6, 6),
        symmetric,
        own=equals("the matrix is its transpose", lambda w: w, lambda w: w.T),
    ),
    Scheme(
        "SetLinear",
        partial(SetLinear, 6),
        (6, 6),
        set_of,
        ("closed", "dense"),
        lambda t, i: t["bias"][0],
        own=moves("equivariance: any permutation", [3, 5, 0, 1, 4, 2], [3, 5, 0, 1, 4, 2], bias=True),
    ),
    Scheme(
        "OrbitLinear C4",
        partial(OrbitLinear, [TURN]),
        (9, 9),
        orbit([PIXELS]),
        bias=lambda t, i: t["bias"][CORNER_OR_EDGE[i]],
        own=moves("equivariance: a quarter turn", *PIXELS, bias=True),
    ),
    Scheme(
        "OrbitLinear of two actions",
        partial(OrbitLinear, [SHIFT[0]], [SHIFT[1]]),
        (2, 4),
        orbit([(SHIFT[0], SHIFT[1])]),
        bias=lambda t, i: t["bias"][0],
        own=moves("equivariance: inputs shift, outputs change places", *SHIFT, bias=True),
    ),
    Scheme(
        "HashedLinear",
        partial(HashedLinear, 7, 5, 6, seed=3),
        (5, 7),
        hashed,
        own=counts("no more values than buckets, signs aside", 6),
    ),
    Scheme(
        "CodebookLinear",
        partial(CodebookLinear, 7, 5, 4),
        (5, 7),
        codebook,
        own=counts("no more values than in the book", 4),
    ),
    *(
        Scheme(
            f"BroadcastLinear {per}{' ' + private if private else ''}",
            partial(quietly, 7, 7 if per == "diagonal" else 5, per=per, private=private, seed=5),
            (7 if per == "diagonal" else 5, 7),
            broadcast(per, private),
            ("dense",) if private == "sign" else ("closed", "dense"),
            own=FULL
            if per == "diagonal"
            else (SIGNED_COLUMNS if per == "output" else SIGNED)
            if private == "sign"
            else RANK_ONE,
        )
        for per, private in product(("input", "output", "scalar", "diagonal"), (None, "scale", "sign"))
        if per != "diagonal" or private is None
    ),
]
