"""Keys and values that heads, or layers, share.

Owns: `GroupedLinear`, a projection whose heads repeat, and `GroupedAttention`, which can read another layer's
keys and values. Read next: `looped.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional as F

from tied.binding import tie
from tied.errors import KindError, ShapeError, during
from tied.nn.init import draw
from tied.nn.input_checks import check_device, explain_bad_input, is_size


class GroupedLinear(nn.Linear):
    """A projection to many heads of which each group of neighbors is one: for the keys and values of attention.

    Law: `weight == group_weight.unflatten(0, (groups, width)).repeat_interleave(heads // groups, 0).flatten(0, 1)`,
    exact, and likewise the bias. One group is multi-query attention; as many as heads, ordinary attention.

    It is an `nn.Linear` for code that expects all heads. It multiplies by the small matrix and repeats the
    result, so it takes `groups / heads` of the arithmetic. The cache of keys that such code keeps does not shrink.

    Shapes:
        input: `(..., in_features)`; output: `(..., heads * width)`.
        group_weight: `(groups * width, in_features)`; group_bias: `(groups * width,)`.

    Args:
        in_features: Width of the input.
        heads: How many heads there are, and how wide each is: `(heads, width)`.
        groups: How many different ones; a divisor of the number of heads.
        bias: Whether to add a bias, which the heads of a group share too.
        device: Where to create the parameters.
        dtype: Their type.

    Raises:
        ShapeError: a size is not positive, or `groups` does not divide the number of heads.

    Example:
        >>> keys = GroupedLinear(512, (8, 64), groups=2, bias=False)
        >>> keys.weight.shape, keys.group_weight.shape
        (torch.Size([512, 512]), torch.Size([128, 512]))

    Source:
        Shazeer 2019, arXiv:1911.02150 (one group); Ainslie et al. 2023, arXiv:2305.13245 (several).
    """

    group_weight: Parameter
    group_bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        heads: tuple[int, int],
        groups: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with during(f"GroupedLinear({in_features!r}, {heads!r}, {groups!r})"):
            _check_groups(in_features, heads, groups)
        nn.Module.__init__(self)
        (self.heads, self.width), self.groups = heads, groups
        self.in_features, self.out_features = in_features, self.heads * self.width
        repeated = f"unflatten(0, ({groups}, {self.width})).repeat_interleave({self.heads // groups}, 0).flatten(0, 1)"
        for name, axes in (("weight", (in_features,)), ("bias", ())):
            wide, small = (torch.empty(n * self.width, *axes, device=device, dtype=dtype) for n in (self.heads, groups))
            self.register_parameter(name, Parameter(wide) if axes or bias else None)
            self.register_parameter(f"group_{name}", Parameter(small) if axes or bias else None)
            if axes or bias:
                tie(self, name, f"group_{name}.{repeated}")
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, heads: int, groups: int) -> GroupedLinear:
        """Make the grouped projection that is nearest to an ordinary one: each group is the mean of its heads.

        Law: of all grouped projections, `weight` has the least squared distance to `linear.weight`.

        Args:
            linear: A projection to `heads` heads; not changed.
            heads: How many heads it has.
            groups: How many different ones to keep.

        Raises:
            KindError: `linear` has no weight matrix.
            ShapeError: `heads` does not divide its output, or `groups` does not divide `heads`.

        Source:
            Ainslie et al. 2023, arXiv:2305.13245, section 2.1 (mean pooling before training on).
        """
        with during(f"GroupedLinear.from_linear({type(linear).__name__}, {heads!r}, {groups!r})"):
            if not isinstance(linear, nn.Linear):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise KindError(
                    "The projection is not linear.",
                    found=type(linear).__name__,
                    expected="an nn.Linear whose output is divided into heads",
                    fix="GroupedLinear.from_linear(attention.k_proj, heads, groups)",
                )
            _check_divides("heads", heads, "the projection's outputs", linear.out_features)
            size = (heads, linear.out_features // heads)
            _check_groups(linear.in_features, size, groups)
            kind, biased = linear.weight, getattr(linear, "bias", None) is not None
            layer = cls(linear.in_features, size, groups, bias=biased, device=kind.device, dtype=kind.dtype)
        with torch.no_grad():
            for name in ("weight", "bias"):
                wide, small = getattr(linear, name), getattr(layer, f"group_{name}")
                if small is not None:
                    small.copy_(wide.unflatten(0, (groups, heads // groups, size[1])).mean(1).flatten(0, 1))
        return layer

    def reset_parameters(self) -> None:
        """Draw the groups' weights and biases anew, as `nn.Linear` does."""
        nn.init.kaiming_uniform_(self.group_weight, a=math.sqrt(5))
        draw(self.group_bias, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Project to the groups, and repeat each for its heads."""
        if any(self._parameters.get(name) is not None for name in ("weight", "bias")):  # somebody untied it
            return super().forward(input)
        check_device(self, input, self.group_weight)
        try:
            projected = F.linear(input, self.group_weight, self.group_bias)
        except RuntimeError:
            explain_bad_input(self, input, self.group_weight, self.in_features)
            raise
        small = projected.unflatten(-1, (self.groups, self.width))
        return small.repeat_interleave(self.heads // self.groups, -2).flatten(-2)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"in_features={self.in_features}, heads={self.heads}, width={self.width}, groups={self.groups}, "
            f"bias={self.group_bias is not None}"
        )


class KeyValue(NamedTuple):
    """Keys and values of all positions, each `(batch, groups, time, width)`: what a cache would hold."""

    key: Tensor
    value: Tensor


class GroupedAttention(nn.Module):
    """Self-attention whose heads share keys and values in groups, and whose layers may share them too.

    Law: equals attention over all heads with each key and value head repeated `heads / groups` times, up to
    rounding. A layer with `groups=0` has no keys and values of its own: it attends to those that another layer
    returned, so that one cache serves both.

    Shapes:
        x: `(batch, time, features)`; output: the same. `KeyValue`: `(batch, groups, time, width)`.

    Args:
        features: Width of input and output; `heads` divides it.
        heads: Of the queries.
        groups: Of the keys and values; a divisor of `heads`, or 0 to read those of another layer.
        bias: Whether the projections have biases.
        device: Where to create the parameters.
        dtype: Their type.

    Raises:
        ShapeError: a size does not divide another.

    Example:
        >>> owner, reader = GroupedAttention(64, 8, 2), GroupedAttention(64, 8, groups=0)
        >>> x, shared = owner(torch.zeros(1, 5, 64), is_causal=True)
        >>> x, _ = reader(x, shared, is_causal=True)
        >>> shared.key.shape, sum(p.numel() for p in reader.parameters())
        (torch.Size([1, 2, 5, 8]), 8192)

    Source:
        Ainslie et al. 2023, arXiv:2305.13245 (between heads); Brandon et al. 2024, arXiv:2405.12981 (between layers).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        groups: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with during(f"GroupedAttention({features!r}, {heads!r}, {groups!r})"):
            _check_divides("heads", heads, "features", features)
            if groups != 0:
                _check_divides("groups", groups, "heads", heads)
        self.heads, self.groups, self.width = heads, groups, features // heads
        self.query = nn.Linear(features, features, bias, device=device, dtype=dtype)
        self.key_value = (
            nn.Linear(features, 2 * groups * self.width, bias, device=device, dtype=dtype) if groups else None
        )
        self.output = nn.Linear(features, features, bias, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, shared: KeyValue | None = None, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, KeyValue]:
        """Attend, and return the keys and values too, for layers that share them.

        Args:
            x: The hidden states.
            shared: Another layer's keys and values, where this one has none.
            mask: As in `F.scaled_dot_product_attention`: true, or 0, where a query may attend to a key.
            is_causal: Whether a position sees only those up to itself.

        Raises:
            KindError: keys and values are there twice, or not at all.
            ShapeError: those of the other layer do not fit the heads.
            DeviceError: `x` lives on another device than the weights.
        """
        check_device(self, x, self.query.weight)
        if (shared is None) == (self.key_value is None):
            with during("GroupedAttention.forward(x)" if shared is None else "GroupedAttention.forward(x, shared)"):
                raise KindError(
                    "The layer needs the keys and values of one layer.",
                    found="none: it has none of its own" if shared is None else "its own, and those of another layer",
                    expected="shared keys and values if and only if groups=0",
                    fix="layer(x, shared) with what another layer returned" if shared is None else "layer(x)",
                )
        try:
            query = self._heads(self.query(x))
        except RuntimeError:
            explain_bad_input(self, x, self.query.weight, self.query.in_features)
            raise
        pair = shared if shared is not None else self._own(x)
        self._check(query, pair)
        attended = F.scaled_dot_product_attention(
            query, pair.key, pair.value, mask, is_causal=is_causal, enable_gqa=pair.key.shape[-3] != self.heads
        )
        return self.output(attended.transpose(-3, -2).flatten(-2)), pair

    def _own(self, x: Tensor) -> KeyValue:
        assert self.key_value is not None
        key, value = self.key_value(x).chunk(2, -1)
        return KeyValue(self._heads(key), self._heads(value))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.width)).transpose(-3, -2)

    def _check(self, query: Tensor, pair: KeyValue) -> None:
        heads, width = pair.key.shape[-3], pair.key.shape[-1]
        if heads == 0 or self.heads % heads or width != self.width or pair.key.shape[:-3] != query.shape[:-3]:
            with during("GroupedAttention.forward(x, shared)"):
                raise ShapeError(
                    "The other layer's keys do not fit these heads.",
                    found=f"keys of shape {tuple(pair.key.shape)} for queries of shape {tuple(query.shape)}",
                    expected=f"the same batch, a width of {self.width}, and a divisor of {self.heads} heads",
                    fix="share between layers of the same features and heads",
                )

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"heads={self.heads}, groups={self.groups}, width={self.width}"


# -- checks -----------------------------------------------------------------------------------------


def _check_groups(in_features: object, heads: object, groups: object) -> None:
    if not isinstance(heads, tuple) or len(heads) != 2:
        raise ShapeError(
            "The heads are given by their number and their width.",
            found=f"heads={heads!r}",
            expected="two whole numbers",
            fix="GroupedLinear(512, (8, 64), groups=2)",
        )
    wrong = [size for size in (in_features, *heads, groups) if not is_size(size)]
    if wrong:
        raise ShapeError(
            "A size is not a positive whole number.",
            found=repr(wrong[0]),
            expected="in_features, (heads, width) and groups of at least 1",
            fix="GroupedLinear(512, (8, 64), groups=2)",
        )
    _check_divides("groups", groups, "heads", heads[0])


def _check_divides(name: str, divisor: object, whole: str, size: int) -> None:
    if not (is_size(divisor) and is_size(size)) or size % divisor:
        raise ShapeError(
            f"{name} must divide {whole}.",
            found=f"{name}={divisor!r}, {whole}={size!r}",
            expected=f"a divisor of {size}",
            fix=f"{name}={math.gcd(divisor, size) if type(divisor) is int and type(size) is int else 1}",
        )
