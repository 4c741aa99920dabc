"""Reversible instance normalization: one set of statistics, there and back.

Owns: `RevIN` and its `Statistics`. Read next: `ema.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.binding import tie
from tied.errors import DtypeError, KindError, ShapeError, during
from tied.nn.input_checks import check_device, check_dtype, is_size
from tied.nn.mixed_precision import wide

Gain = Literal["positive", "free"] | None
Center = Literal["mean", "last"]
ROUNDING = 16  # a series whose deviation is within so many roundings of its size is taken for constant


class Statistics(NamedTuple):
    """What `normalize` took from each series, and `denormalize` gives back: `(..., 1, features)` each.

    Attributes:
        center: What was subtracted.
        scale: What was divided by; never zero.
    """

    center: Tensor
    scale: Tensor


class RevIN(nn.Module):
    """Normalize each series before a forecast, and undo it afterwards with the same numbers.

    Law: `denormalize(normalize(x)) == x`, up to rounding; and a forecast between the two commutes with
    change of units: `f(a * x + b) == a * f(x) + b` for `a > 0`, up to rounding, for series that vary.

    The statistics are returned, not kept: two calls may be under way at once. There is one guard: a
    series that does not vary, up to rounding, has the scale 1, for both directions. `gain` and `bias` are
    learned, and the inverse uses the same ones. No gradient goes through the statistics, as in the authors' code.

    Shapes:
        x: `(..., time, features)`; statistics: `(..., 1, features)`, in float32 at least; weight, bias: `(features,)`.

    Args:
        features: How many series there are side by side.
        gain: `"positive"`: `weight == log_weight.exp()`, which cannot reach zero; `"free"`: the paper's, whose
            inverse explodes near zero; `None`: no gain and no bias.
        center: What is subtracted: the `"mean"`, or the `"last"` value.
        eps: Added to the variance: the paper's 1e-5 has a unit, and drowns a series of small numbers; 0 has none.
        device: Where to create the parameters.
        dtype: Their type.

    Raises:
        ShapeError: `features` is not positive, or `eps` negative.
        KindError: `gain` or `center` is another word.
        DtypeError: `dtype` is not a real floating point type.

    Example:
        >>> revin, x = RevIN(3), 1e-4 * torch.randn(2, 96, 3)
        >>> normal, statistics = revin.normalize(x)
        >>> forecast = revin.denormalize(normal[:, -24:], statistics)
        >>> torch.allclose(forecast, x[:, -24:], rtol=0, atol=1e-9)
        True

    Source:
        Kim et al. 2022, Reversible Instance Normalization, ICLR, section 3.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        features: int,
        *,
        gain: Gain = "positive",
        center: Center = "mean",
        eps: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with during(f"RevIN({features!r})"):
            check_dtype(dtype)
            _check_options(features, gain, center, eps)
        self.features, self.gain, self.center, self.eps = features, gain, center, eps
        for name in {"positive": ("log_weight", "weight", "bias"), "free": ("weight", "bias"), None: ()}[gain]:
            self.register_parameter(name, Parameter(torch.empty(features, device=device, dtype=dtype)))
        if gain == "positive":
            tie(self, "weight", "log_weight.exp()")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to 1 and the bias to 0."""
        for name, parameter in self.named_parameters():
            nn.init.constant_(parameter, float(name == "weight"))

    def normalize(
        self, x: Tensor, statistics: Statistics | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Return the normalized series, and what was taken from them.

        Args:
            x: The series.
            statistics: Take these, where several tensors are parts of the same series (an encoder's and a
                decoder's input).
            mask: True where `x` was observed; it may be anything elsewhere, and becomes 0 there.

        Raises:
            ShapeError: `x` or `mask` has another shape, or no moment.
            DtypeError: `x` holds no real floating-point numbers.
        """
        self._check(x)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape):
            with during("RevIN"):
                raise ShapeError(
                    "The mask does not say for each value whether it was observed.",
                    found=f"{mask.dtype} of shape {tuple(mask.shape)}",
                    expected=f"torch.bool of shape {tuple(x.shape)}",
                    fix="mask.bool().expand_as(x)",
                )
        x = x if mask is None else torch.where(mask, x, 0)
        precise = wide(x)
        if statistics is None:
            statistics = self._statistics(precise.detach(), mask)
        normal = ((precise - statistics.center) / statistics.scale).to(x.dtype)
        if self.gain is not None:
            normal = normal * self.weight + self.bias
        return (normal if mask is None else torch.where(mask, normal, 0)), statistics

    def denormalize(self, y: Tensor, statistics: Statistics) -> Tensor:
        """Return `y` in the units of the series that `statistics` were taken from.

        Args:
            y: `(..., any time, features)`.
            statistics: What `normalize` returned.

        Raises:
            ShapeError: `y` has another number of features.
            KindError: `statistics` are none.
        """
        if not isinstance(statistics, Statistics):  # pyright: ignore[reportUnnecessaryIsInstance]
            with during("RevIN.denormalize(y, statistics)"):
                raise KindError(
                    "The statistics are not what normalize returned.",
                    found=type(statistics).__name__,
                    expected="the second value that normalize returned",
                    fix="normal, statistics = revin.normalize(x)",
                )
        self._check(y)
        if self.gain is not None:
            y = (y - self.bias) / self.weight
        return (y * statistics.scale + statistics.center).to(y.dtype)

    def forward(
        self, x: Tensor, statistics: Statistics | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Normalize; see `normalize`."""
        return self.normalize(x, statistics, mask=mask)

    # -- statistics ---------------------------------------------------------------------------------

    def _statistics(self, x: Tensor, mask: Tensor | None) -> Statistics:
        """Return center and scale over the observed moments; where none was observed, 0 and 1.

        The deviation is taken in units of the largest value: squares of very small or large numbers do not fit.
        Zeros alone give nan there, which is not more than a rounding.
        """
        seen = x.shape[-2] if mask is None else mask.sum(-2, keepdim=True).clamp(min=1)
        mean = x.sum(-2, keepdim=True) / seen
        size = x.abs().amax(-2, keepdim=True)
        relative = (x - mean) / size
        relative = relative if mask is None else torch.where(mask, relative, 0)
        deviation = (relative.square().sum(-2, keepdim=True) / seen).sqrt()
        varies = deviation > ROUNDING * torch.finfo(x.dtype).eps
        if self.eps:
            scale = (torch.where(varies, deviation * size, 0).square() + self.eps).sqrt()
        else:
            scale = torch.where(varies, deviation * size, 1)
        return Statistics(mean if self.center == "mean" else _last(x, mask), scale)

    def _check(self, x: Tensor) -> None:
        check_device(self, x, x if self.gain is None else self.bias)
        if x.dim() < 2 or x.shape[-1] != self.features or not (x.shape[-2] and x.is_floating_point()):
            _refuse_series(x, self.features)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.features}, gain={self.gain!r}, center='{self.center}', eps={self.eps}"


def _last(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the last observed value of each series."""
    if mask is None:
        return x[..., -1:, :]
    moments = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1)
    return x.gather(-2, torch.where(mask, moments, 0).amax(-2, keepdim=True))


# -- checks -----------------------------------------------------------------------------------------


def _check_options(features: object, gain: object, center: object, eps: float) -> None:
    if not is_size(features) or not 0 <= eps < float("inf"):
        raise ShapeError(
            "The number of features is not positive, or eps is negative.",
            found=f"features={features!r}, eps={eps!r}",
            expected="a whole number of at least 1, and a finite eps of at least 0",
            fix="RevIN(7)",
        )
    if gain not in ("positive", "free", None) or center not in ("mean", "last"):
        raise KindError(
            "The gain or the center is none of the known ones.",
            found=f"gain={gain!r}, center={center!r}",
            expected="gain 'positive', 'free' or None; center 'mean' or 'last'",
            fix=f"RevIN({features})",
        )


def _refuse_series(x: Tensor, features: int) -> NoReturn:
    with during("RevIN"):
        if x.dim() < 2 or x.shape[-1] != features or not x.shape[-2]:
            raise ShapeError(
                "The series do not have the shape that was announced.",
                found=f"shape {tuple(x.shape)}",
                expected=f"(..., time, {features}), with at least one moment",
                fix="x.transpose(-2, -1), where time comes last; the number of features is RevIN's first argument",
            )
        raise DtypeError(
            "Only real floating-point numbers can be normalized.",
            found=str(x.dtype),
            expected="float32, float64, float16 or bfloat16",
            fix="x.float(), or the real and imaginary parts as two series",
        )
