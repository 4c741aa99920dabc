"""What all structured layers are: linear maps whose matrix is built of fewer numbers than it has entries.

Owns: `StructuredLinear`: construction, the choice of algorithm, the matrix as an attribute. Must not know any scheme.
Read next: `toeplitz.py`, the plainest scheme; `constant_buffers.py`, for layers with an index or signs.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from tied.binding.target_tensor import computing
from tied.errors import WriteError
from tied.nn.accumulate import fast_linear
from tied.nn.init import draw
from tied.nn.input_checks import check_choice, check_dtype, check_size, explain_bad_input
from tied.nn.mixed_precision import is_cast, lowered


class Options(TypedDict, total=False):
    """What every structured layer takes by keyword: see `StructuredLinear`."""

    bias: bool
    algorithm: str
    device: torch.device | str | None
    dtype: torch.dtype | None


class StructuredLinear(nn.Module):
    """A linear layer whose matrix is a function of fewer numbers; the root of all structured layers.

    Law: `layer(x) == F.linear(x, layer.weight, layer.bias)` up to rounding, for every algorithm; gradients too.

    A scheme says which parameters it has (`shapes`), how the matrix follows from them (`build`), and, where the
    structure allows it, a product without the matrix (`multiply`) and the sizes at which that is faster (`pays`).

    Shapes:
        input: `(..., in_features)`; output: `(..., out_features)`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether to add a bias.
        algorithm: `"auto"` chooses by size, as measured by `benchmarks/structured.py`; `"dense"` builds the matrix;
            the layer's own word for its fast algorithm forces that. The attribute may be set at any time.
        device: Where to create the parameters.
        dtype: Their type: float32, float64, bfloat16 or float16.

    Raises:
        ShapeError: a size is not a positive integer.
        AddressError: there is no such algorithm.
        DtypeError: the dtype is not a real floating point type.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    fast: str = "dense"  # the name of the algorithm without the matrix; "dense" where there is none
    shown: tuple[str, ...] = ()  # the scheme's own attributes that `repr` shows

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
        check_dtype(dtype)
        self.algorithm = algorithm
        shapes = self.shapes()
        self._names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        own = nn.Parameter(torch.empty(self.bias_size(), device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own)
        self.prepare()
        self.reset_parameters()

    # -- what a scheme says ---------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter but the bias, by name; raise where sizes do not fit each other."""
        raise NotImplementedError

    def build(self) -> Tensor:
        """Return the matrix `(out_features, in_features)`, differentiable."""
        raise NotImplementedError

    def multiply(self, input: Tensor) -> Tensor:
        """Return `F.linear(input, self.build())` without building the matrix."""
        raise NotImplementedError

    def pays(self) -> bool:
        """Tell whether `multiply` is faster than building the matrix, at these sizes."""
        return True

    def bias_size(self) -> int:
        """Return how many biases there are: one for each output, unless outputs share theirs."""
        return self.out_features

    def bias_of_outputs(self) -> Tensor | None:
        """Return the bias of each output, `(out_features,)`."""
        return self.bias

    def prepare(self) -> None:
        """Register the buffers of the scheme, where it has any."""

    def reset_parameters(self) -> None:
        """Draw all numbers uniformly within `±1/sqrt(in_features)`: each entry of the matrix as in `nn.Linear`."""
        for name in (*self._names, "bias"):
            draw(getattr(self, name), self.in_features)

    # -- what a user sees -----------------------------------------------------------------------------

    @property
    def algorithm(self) -> str:
        """What computes the output. May be set, also to `"auto"`."""
        if self._algorithm == "auto":
            return self.fast if self.pays() else "dense"
        return self._algorithm

    @algorithm.setter
    def algorithm(self, name: str) -> None:
        self._algorithm = check_choice("algorithm", name, tuple(dict.fromkeys(["auto", "dense", self.fast])))

    @property
    def numbers(self) -> Tensor:
        """The first of the tensors that the matrix is built of, which says where the layer lives."""
        return getattr(self, self._names[0])

    @property
    def weight(self) -> Tensor:
        """The matrix `(out_features, in_features)`, built at each read, differentiable. Writing to it raises."""
        structure = _Structure(self)
        return computing(structure.read, structure)()

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        self._check_input(input, self.numbers)
        bias = self.bias_of_outputs()
        if self.algorithm == "dense" or 0 in input.shape:  # FFT libraries refuse empty batches
            return fast_linear(input, self.build(), bias)
        output = self.multiply(input)
        return lowered(output if bias is None else output + bias)

    def _check_input(self, input: Any, numbers: Tensor) -> None:
        """Refuse an input that does not fit, before an algorithm broadcasts or promotes it into something else."""
        tensor = isinstance(input, Tensor) and input.dim()
        fits = tensor and input.shape[-1] == self.in_features and input.device == numbers.device
        if not (fits and (input.dtype == numbers.dtype or is_cast(input, numbers))):
            explain_bad_input(self, input, numbers, self.in_features)

    def extra_repr(self) -> str:
        """Show sizes and bias, the algorithm where there are two, and what the scheme has to show."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        algorithm = "" if self.fast == "dense" else f", algorithm={self.algorithm}"
        return sizes + algorithm + "".join(f", {name}={getattr(self, name)}" for name in self.shown)


class _Structure:
    """Where the matrix of a structured layer comes from, for those who write to it: writes have no place to go."""

    def __init__(self, layer: StructuredLinear) -> None:
        self.layer = layer

    def read(self) -> Tensor:
        return self.layer.build().clone(memory_format=torch.contiguous_format)  # which may be a view of parameters

    def write(self, value: Tensor) -> NoReturn:
        raise WriteError(
            f"The matrix of {type(self.layer).__name__} is built from fewer numbers, so it cannot be written.",
            found="an in-place write to layer.weight",
            expected=f"a write to {' or '.join(self.layer._names)}",
            fix="write to the parameters, or draw them anew with layer.reset_parameters()",
        )

    def gradient(self) -> None:
        """The matrix has none: its numbers have."""

    def require_grad(self, requires_grad: bool) -> None:
        for name in self.layer._names:
            getattr(self.layer, name).requires_grad_(requires_grad)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self.layer, name) for name in self.layer._names}
