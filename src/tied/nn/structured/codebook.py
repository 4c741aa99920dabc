"""Layers whose entries are codes: short numbers that look up one of a few values.

Owns: `CodebookLinear`, and k-means on a line. Must not know other schemes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from tied.errors import InverseError, KindError, ShapeError, during
from tied.nn.init import draw
from tied.nn.input_checks import check_size
from tied.nn.structured.gather import gather
from tied.nn.structured.structured_linear import Options, StructuredLinear

MOST_STEPS = 300


class CodebookLinear(StructuredLinear):
    """A linear layer whose entries are looked up in a small codebook.

    Law: `weight == theta[codes]`; the gradient of a value is the sum over the entries that have its code.

    Made from a trained layer it is that layer, with its weights clustered. Training moves the values and keeps the
    codes; `reassign` keeps the values and chooses the codes anew. A new layer has random codes, and values spread
    evenly over the range of `nn.Linear`'s weights.

    Shapes:
        theta: `(values,)`, the codebook. codes, a buffer that is stored: `(out_features, in_features)`, one byte
        each for at most 256 values.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        values: How many values the codebook has.
        bias, device, dtype: As in `StructuredLinear`; the one algorithm is `"dense"`.

    Example:
        >>> dense = nn.Linear(64, 32)
        >>> layer = CodebookLinear.from_linear(dense, values=16)
        >>> layer.weight.unique().numel(), bool((layer.weight - dense.weight).abs().max() < 0.01)
        (16, True)

    Source:
        Han et al. 2016, Deep Compression, arXiv:1510.00149, section 3.
    """

    theta: nn.Parameter
    codes: Tensor
    shown = ("values",)

    def __init__(self, in_features: int, out_features: int, values: int = 16, **options: Unpack[Options]) -> None:
        with during(f"CodebookLinear({in_features!r}, {out_features!r}, {values!r})"):
            self.values = check_size("values", values)
            super().__init__(in_features, out_features, **options)

    @classmethod
    def from_linear(cls, layer: nn.Module, values: int = 16) -> Self:
        """Make a layer of a trained one: its weights clustered by `fit`, its bias copied.

        Args:
            layer: An `nn.Linear`, or a module with such a `weight` and `bias`; it is not changed.
            values: How many values the codebook has.

        Raises:
            KindError: `layer` has no matrix called `weight`.
            InverseError: the weight has entries that are not finite.
        """
        with during(f"CodebookLinear.from_linear({type(layer).__name__}, values={values!r})"):
            weight, bias = _matrix_of(layer), getattr(layer, "bias", None)
            width, height = weight.shape[1], weight.shape[0]
            made = cls(width, height, values, bias=isinstance(bias, Tensor), device=weight.device, dtype=weight.dtype)
            made._cluster(made._points(weight))
        if made.bias is not None and isinstance(bias, Tensor):
            made.bias.data.copy_(bias)
        return made.train(layer.training)

    # -- the scheme -----------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the codebook's."""
        return {"theta": (self.values,)}

    def prepare(self) -> None:
        """Make room for the codes."""
        narrow = torch.uint8 if self.values <= 256 else torch.int32
        codes = torch.zeros(self.out_features, self.in_features, dtype=narrow, device=self.theta.device)
        self.register_buffer("codes", codes)

    def reset_parameters(self) -> None:
        """Draw a code for each entry; set the values to the middles of equal parts of `±1/sqrt(in_features)`."""
        middles = (torch.arange(self.values, dtype=torch.float64) * 2 + 1) / self.values - 1
        with torch.no_grad():
            self.theta.copy_(middles / self.in_features**0.5)
            self.codes.random_(0, self.values)
        draw(self.bias, self.in_features)

    def build(self) -> Tensor:
        """Look the values up."""
        return gather(self.theta, self.codes.long())

    # -- codes ----------------------------------------------------------------------------------------

    def fit(self, weight: Tensor) -> None:
        """Choose values and codes for a matrix, by k-means on its entries.

        Law: no entry has a code whose value is not the nearest, and each value is the mean of its entries. The first
        values are spread evenly over the range, which keeps the few large weights (Han et al., section 3.2).

        Args:
            weight: `(out_features, in_features)`.

        Raises:
            ShapeError: it has another shape.
            InverseError: it has entries that are not finite.
        """
        with during("CodebookLinear.fit(weight)"):
            self._cluster(self._points(weight))

    @torch.no_grad()
    def reassign(self, weight: Tensor) -> int:
        """Give each entry the code whose value is nearest to that entry of `weight`; the values stay.

        After training has moved the values, entries of the matrix that was fitted may be nearer to another one.

        Args:
            weight: `(out_features, in_features)`, such as the weight of the layer that this one was made from.

        Returns:
            How many entries got another code.

        Raises:
            ShapeError: it has another shape.
            InverseError: it has entries that are not finite.
        """
        with during("CodebookLinear.reassign(weight)"):
            points = self._points(weight)
        codes = nearest_value(points, self.theta.double()).reshape(self.codes.shape)
        changed = int((codes != self.codes).sum())
        self.codes.copy_(codes)
        return changed

    @torch.no_grad()
    def _cluster(self, points: Tensor) -> None:
        values, codes = cluster(points, self.values)
        self.theta.copy_(values)
        self.codes.copy_(codes.reshape(self.codes.shape))

    def _points(self, weight: Tensor) -> Tensor:
        shape = tuple(getattr(weight, "shape", ()))
        if shape != (self.out_features, self.in_features):
            raise ShapeError(
                "The weight has another shape than the layer's.",
                found=f"a {type(weight).__name__} of shape {shape}",
                expected=f"shape {(self.out_features, self.in_features)}",
                fix="pass the weight of the layer that this one was made from",
            )
        points = weight.detach().to(self.theta.device, torch.float64).flatten()
        if not points.isfinite().all():
            raise InverseError(
                "No codebook gives this weight.",
                found=f"{int((~points.isfinite()).sum())} entries that are not finite",
                expected="numbers",
                fix="look for the step of training that made them",
            )
        return points


def nearest_value(points: Tensor, values: Tensor) -> Tensor:
    """Return the position of the nearest value for each point; of two that are as near, the smaller value's.

    >>> nearest_value(torch.tensor([0.4, 0.6, 9.0]), torch.tensor([1.0, 0.0]))
    tensor([1, 0, 0])
    """
    ordered, places = values.sort()
    return places[torch.bucketize(points, (ordered[1:] + ordered[:-1]) / 2)]


def cluster(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` values and the code of each point: Lloyd's algorithm, from values spread over the range.

    >>> cluster(torch.tensor([0.0, 1.0, 1.0, 7.0]), 2)
    (tensor([0.6667, 7.0000]), tensor([0, 0, 0, 1]))

    Source:
        Lloyd 1982, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28(2), method I.
    """
    line = points.sort().values
    sums = torch.cat((line.new_zeros(1), line.cumsum(0)))
    values = torch.lerp(line[0], line[-1], torch.linspace(0, 1, count, dtype=line.dtype, device=line.device))
    for _ in range(MOST_STEPS):
        ends = torch.searchsorted(line, (values[1:] + values[:-1]) / 2, right=True)  # the values stay in order
        ends = torch.cat((ends.new_zeros(1), ends, ends.new_full((1,), line.numel())))
        uses = ends.diff()
        moved = torch.where(uses > 0, sums[ends].diff() / uses, values)
        if torch.equal(moved, values):
            break
        values = moved
    return values, nearest_value(points, values)


def _matrix_of(layer: nn.Module) -> Tensor:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.numel():
        found = f"of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise KindError(
            "The layer has no matrix called 'weight'.",
            found=f"{type(layer).__name__}.weight is {found}",
            expected="a layer with a weight of shape (out_features, in_features), such as nn.Linear",
            fix="pass the layer itself: CodebookLinear.from_linear(model.fc)",
        )
    return weight.detach()
