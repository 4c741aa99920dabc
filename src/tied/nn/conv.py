"""Transposed convolutions that compute with a convolution's weight as it is: its adjoint.

Owns: `TiedConvTranspose1d`, `2d`, `3d`. Must not keep a tensor of the source: the binding reads it late.
Read next: `linear.py`.

A convolution pads (P), then slides (S). Its adjoint is Pᵀ Sᵀ: torch's transposed convolution is Sᵀ, and
Pᵀ drops what was padded with zeros, or adds it to the entries of which the padding was a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tied.binding import bind
from tied.errors import DtypeError, KindError, ShapeError, during
from tied.nn.init import draw
from tied.nn.input_checks import check_device, check_trainable, explain_bad_input

# padding mode -> which entry of an axis the padded position is a copy of (positions count from the axis' start)
COPIED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "circular": lambda position, size: position % size,
    "replicate": lambda position, size: position.clamp(0, size - 1),
    "reflect": lambda position, size: size - 1 - (size - 1 - position.abs()).abs(),
}

TRANSPOSED = F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d
ALIKE = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice")


class _Adjoint(_ConvTransposeNd):
    """What the three dimensions have in common."""

    _source: ClassVar[type[_ConvNd]]

    def __init__(
        self,
        conv: _ConvNd,
        bias: bool = True,
        *,
        output_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with during(f"{type(self).__name__}({type(conv).__name__})"):
            weight = self._weight_of(conv)
            nn.Module.__init__(self)
            for name in ALIKE:
                setattr(self, name, getattr(conv, name))
            self.in_channels, self.out_channels, self.transposed = conv.out_channels, conv.in_channels, True
            self.output_padding = (0,) * len(conv.kernel_size)
            if output_size is not None:
                self.output_padding = self._remainders(self._spatial(output_size))
            own = torch.empty(self.out_channels, device=device or weight.device, dtype=dtype or weight.dtype)
            self.register_parameter("bias", nn.Parameter(own) if bias else None)
            self.reset_parameters()
            bind(self, "weight", "conv.weight", {"conv": conv})

    @classmethod
    def _weight_of(cls, conv: Any) -> Tensor:
        if not isinstance(conv, cls._source):
            raise KindError(
                f"The source is not an nn.{cls._source.__name__}.",
                found=type(conv).__name__,
                expected=f"the nn.{cls._source.__name__} whose weight is to be used",
                fix=f"{cls.__name__}(model.conv); another number of dimensions has a class of its own",
            )
        if type(conv).forward is not cls._source.forward:  # pads, normalizes or activates by itself
            raise KindError(
                "The convolution computes in a way of its own, whose adjoint is not known.",
                found=f"{type(conv).__name__}.forward, which is not that of nn.{cls._source.__name__}",
                expected=f"an nn.{cls._source.__name__} that computes as torch does",
                fix="share the weight alone: tied.tie(model, 'back.weight', 'conv.weight')",
            )
        if check_trainable(conv.weight).is_complex():
            raise DtypeError(
                "The adjoint of a complex convolution needs the conjugate weight, not the same one.",
                found=str(conv.weight.dtype),
                expected="a real dtype",
                fix="share real and imaginary parts as two convolutions",
            )
        return conv.weight

    def reset_parameters(self) -> None:
        """Draw a new bias, within `±1/sqrt(fan_in)` of the adjoint. The weight belongs to the convolution."""
        draw(self.bias, self.in_channels // self.groups * math.prod(self.kernel_size))

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map what the convolution gives back to the size of what it takes.

        Args:
            input: `(batch, conv.out_channels, ...)`, or without the batch.
            output_size: Of this call's output: the spatial sizes, or a whole shape such as `x.shape`. Where it
                is not given, the sizes have the remainders of the constructor's, or are the smallest possible.

        Raises:
            ShapeError: the convolution maps no input of that size to this one.
            DeviceError: the input lives on another device than the weight.
        """
        weight = self.weight
        check_device(self, input, weight)
        extra = self.output_padding if output_size is None else self._extra(input, output_size)
        try:
            return self._adjoint(input, weight, extra)
        except RuntimeError:
            explain_bad_input(self, input, weight, self.in_channels, -1 - len(self.kernel_size))
            raise

    def _adjoint(self, input: Tensor, weight: Tensor, extra: Sequence[int]) -> Tensor:
        """Undo the sliding, then the padding."""
        padding, transposed = self._reversed_padding_repeated_twice, TRANSPOSED[len(self.kernel_size) - 1]
        if self.padding_mode == "zeros" and padding[::2] == padding[1::2]:
            how = (self.stride, padding[::-2], extra, self.groups, self.dilation)
            return transposed(input, weight, self.bias, *how)
        output = self._unpad(transposed(input, weight, None, self.stride, 0, extra, self.groups, self.dilation))
        return output if self.bias is None else output + self.bias.view(-1, *[1] * len(extra))

    # -- padding ------------------------------------------------------------------------------------

    def _margins(self) -> list[tuple[int, int]]:
        """Return how much the convolution pads before and behind each axis."""
        padding = self._reversed_padding_repeated_twice
        return list(zip(padding[::2], padding[1::2], strict=True))[::-1]

    def _unpad(self, padded: Tensor) -> Tensor:
        """Apply Pᵀ, one axis after the other."""
        for axis, (before, behind) in enumerate(self._margins(), start=-len(self.kernel_size)):
            size = padded.shape[axis] - before - behind
            if self.padding_mode == "zeros":
                padded = padded.narrow(axis, before, size)
            elif before or behind:
                self._check_margins(size, max(before, behind))
                positions = torch.arange(-before, size + behind, device=padded.device)
                shape = [*padded.shape]
                shape[axis] = size
                origin = COPIED[self.padding_mode](positions, size)
                padded = padded.new_zeros(shape).index_add(axis, origin, padded)
        return padded

    def _check_margins(self, size: int, widest: int) -> None:
        least = {"circular": widest, "reflect": widest + 1}.get(self.padding_mode, 1)
        if size < least:
            self._refuse(
                "The output would be too small for the convolution's padding.",
                found=f"an axis of size {size}, padded by {widest} in mode '{self.padding_mode}'",
                expected=f"at least {least}",
                fix="a larger input, or padding_mode='zeros'",
            )

    # -- sizes --------------------------------------------------------------------------------------

    def _spatial(self, output_size: int | Sequence[int]) -> tuple[int, ...]:
        """Return the spatial part of a size, which may be one number, or a whole shape."""
        dims = len(self.kernel_size)
        sizes = (output_size,) * dims if isinstance(output_size, int) else tuple(output_size)
        if not dims <= len(sizes) <= dims + 2:
            self._refuse(
                "The output size does not have the convolution's number of axes.",
                found=f"output_size={sizes}",
                expected=f"{dims} sizes, or a shape that ends with them",
                fix=f"output_size=x.shape[-{dims}:]",
            )
        return sizes[-dims:]

    def _spans(self) -> list[int]:
        """Return for each axis how far one window of the convolution reaches, less what is padded."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [span - sum(margin) for span, margin in zip(reach, self._margins(), strict=True)]

    def _remainders(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Return what the convolution's stride leaves over of inputs of these sizes."""
        spans = self._spans()
        if any(size < max(span, 1) for size, span in zip(sizes, spans, strict=True)):
            self._refuse_sizes(sizes, f"at least {tuple(max(span, 1) for span in spans)}")
        return tuple((size - span) % s for size, span, s in zip(sizes, spans, self.stride, strict=True))

    def _extra(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """Return what is to be added to the smallest output for this call's size."""
        sizes = self._spatial(output_size)
        given = input.shape[-len(sizes) :]
        least = [(n - 1) * s + span for n, s, span in zip(given, self.stride, self._spans(), strict=True)]
        extra = tuple(size - low for size, low in zip(sizes, least, strict=True))
        if any(not 0 <= more < s for more, s in zip(extra, self.stride, strict=True)):
            most = tuple(low + s - 1 for low, s in zip(least, self.stride, strict=True))
            self._refuse_sizes(sizes, f"from {tuple(least)} to {most}, for an input of {tuple(given)}")
        return extra

    def _refuse_sizes(self, sizes: tuple[int, ...], expected: str) -> NoReturn:
        self._refuse(
            "The convolution takes no input of that size here.",
            found=f"output_size={sizes}",
            expected=expected,
            fix="the size of what the convolution was applied to: output_size=x.shape",
        )

    def _refuse(self, problem: str, **parts: str) -> NoReturn:
        with during(f"{type(self).__name__}(...)"):
            raise ShapeError(problem, **parts)


class TiedConvTranspose1d(_Adjoint, nn.ConvTranspose1d):
    """The adjoint of an `nn.Conv1d`, with the same weight, now and after every change.

    See `TiedConvTranspose2d`.

    Example:
        >>> conv = nn.Conv1d(2, 4, 5, padding=2, padding_mode="circular")
        >>> TiedConvTranspose1d(conv)(conv(torch.zeros(1, 2, 9))).shape
        torch.Size([1, 2, 9])
    """

    _source = nn.Conv1d


class TiedConvTranspose2d(_Adjoint, nn.ConvTranspose2d):
    """The adjoint of an `nn.Conv2d`, with the same weight, now and after every change.

    Law: `<conv(x), y> == <x, layer(y)>` for all `x` and `y` without biases, up to rounding. The weight is
    used as it is: torch stores that of a transposed convolution in the order of the convolution it reverts.

    The layer owns its bias only. `conv` is not a submodule of it: register it where it belongs. Every option of
    the convolution is followed: stride, dilation, groups, `padding="same"`, and every padding mode, where the
    adjoint adds the border to the entries that it was copied from.

    Shapes:
        input: `(..., conv.out_channels, height, width)`; output: `(..., conv.in_channels, *output_size)`.
        bias: `(conv.in_channels,)`.

    Args:
        conv: The module that owns the weight.
        bias: Whether to add a bias of its own.
        output_size: The spatial size of what `conv` takes, so that the output has it, whatever the stride cuts
            off; a number, a tuple, or a shape. `forward` takes it too, where sizes change. Without it the output
            is the smallest that `conv` maps to the input's size.
        device: Of the bias; that of `conv.weight` where not given.
        dtype: Of the bias; that of `conv.weight` where not given.

    Raises:
        KindError: `conv` is no `nn.Conv2d`, has no shape yet, or computes in a way of its own.
        DtypeError: its weight is complex, or holds integers.
        ShapeError: `conv` takes no input of `output_size`.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        >>> back = TiedConvTranspose2d(conv, output_size=28)
        >>> pair = nn.ModuleList([conv, back])
        >>> back(conv(torch.zeros(5, 3, 28, 28))).shape, sum(p.numel() for p in pair.parameters())
        (torch.Size([5, 3, 28, 28]), 227)
        >>> back.weight is conv.weight
        True

    Source:
        Zeiler et al. 2010, Deconvolutional Networks, CVPR; Dumoulin & Visin 2016, arXiv:1603.07285, section 4.
    """

    _source = nn.Conv2d


class TiedConvTranspose3d(_Adjoint, nn.ConvTranspose3d):
    """The adjoint of an `nn.Conv3d`, with the same weight, now and after every change.

    See `TiedConvTranspose2d`.

    Example:
        >>> conv = nn.Conv3d(1, 2, 3, stride=2)
        >>> back = TiedConvTranspose3d(conv)
        >>> back(conv(torch.zeros(1, 1, 8, 8, 8)), output_size=(8, 8, 8)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    _source = nn.Conv3d
