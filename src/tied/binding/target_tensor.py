"""What a target reads as: a tensor that sends to the source what would otherwise be lost.

Owns: `Target`, for values that are views of the source's memory, and `Derived`, for values that are computed, in
which an in-place write must not vanish. Must not change modules. Read next: `link.py`.

    nn.init.zeros_(model.head.weight)      # head.weight = 2 * embed.weight: writes embed.weight
    model.head.weight.requires_grad_(False)    # freezes embed.weight
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from tied.errors import KindError, ShapeError, WriteError

Read = Callable[[], Tensor]


class Origin(Protocol):
    """Where a target's value comes from, as far as its value needs to know."""

    read: Read

    def write(self, value: Tensor) -> None:
        """Give the sources values that make `value` of the target."""

    def require_grad(self, requires_grad: bool) -> None:
        """Freeze or thaw the sources."""

    def gradient(self) -> Tensor | None:
        """Return the gradients of the sources, seen as the target sees their values."""

    def tensors(self) -> Mapping[Any, Tensor]:
        """Read every source once, as it is."""
        ...


class Target(Tensor):
    """The value of a tied attribute: a plain tensor, except that it freezes and writes where its source lives.

    An `nn.Parameter` to `isinstance`, as what stands in a Parameter's place should be; yet no module can register it.
    Results of operations on it are plain tensors.
    """

    _origin: Origin
    _is_param = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def plain(self) -> Tensor:
        """The same memory as a plain tensor."""
        return self.as_subclass(Tensor)

    @property
    def data(self) -> Tensor:
        """The value without a graph; setting it writes to the source."""
        return self.plain.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        _write_whole(self, value)

    @property
    def requires_grad(self) -> bool:
        """Whether the value needs a gradient; setting it freezes or thaws the source."""
        return self.plain.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._origin.require_grad(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Freeze or thaw the source, and return the value read anew."""
        self._origin.require_grad(requires_grad)
        return self._origin.read()

    @property
    def grad(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The source's gradient, summed over every use, as the target sees it: the same memory; setting it is refused.

        Raises:
            KindError: a gradient is assigned.
        """
        return self._origin.gradient()

    @grad.setter
    def grad(self, value: Tensor | None) -> NoReturn:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise _not_assigned()

    def __getattr__(self, name: str) -> Any:
        """Return what other libraries keep on the sources (`_is_hf_initialized`, `no_decay`), where all of them agree.

        Raises:
            AttributeError: they do not, or have nothing of this name.
        """
        origin = None if name[:2] == "__" else self.__dict__.get("_origin")
        sources = [] if origin is None else [t for t in origin.tensors().values() if isinstance(t, nn.Parameter)]
        marks = [vars(source)[name] for source in sources if name in vars(source)]
        if not marks or len(marks) < len(sources) or any(mark is not marks[0] for mark in marks):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return marks[0]

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what a tensor does not have: the next read is another one, which would not have it either.

        Raises:
            KindError: `name` is no attribute of tensors.
        """
        if not hasattr(type(self), name) and not name.startswith("_dynamo"):  # whose marks are for this one tensor
            raise _not_kept(name)
        super().__setattr__(name, value)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> NoReturn:
        """Refuse: the next read is another tensor, and the hook would never be called.

        Raises:
            KindError: always.
        """
        raise KindError(
            "A hook on a tied weight would never be called: every read of it is a new tensor.",
            found="register_hook() on the value of a tie",
            expected="a tensor that stays, such as the source",
            fix="register the hook on the source, which gets the sum over all uses, or give "
            "module.register_full_backward_hook() to the module that computes with the weight",
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Print as a plain tensor."""
        return self.plain.__repr__(tensor_contents=tensor_contents)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor."""
        return self.plain.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy as a plain tensor."""
        return self.plain.__deepcopy__(memo)


def _not_kept(name: str) -> KindError:
    return KindError(
        "An attribute that is set on a tied weight would be lost: every read of it is a new tensor.",
        found=f"'.{name}', set on the value of a tie",
        expected="a tensor that stays, such as the source",
        fix=f"set '.{name}' on the source; or tied.untie(model) first, where a library does this for each layer",
    )


def _not_assigned() -> KindError:
    return KindError(
        "A weight that is computed has no gradient of its own.",
        found="a gradient, assigned to the value",
        expected="the gradient of the source, which is the sum over all uses",
        fix="set .grad of the source",
    )


class Derived(Target):
    """A computed weight: in-place writes reach the source through the right inverse, or raise.

    A write through a view of it (`w[0].zero_()`) or by `out=` is not seen.
    """

    @property
    def data(self) -> Tensor:
        """The value without a graph; writing to it writes to the source."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        _write_whole(self, value)

    @property
    def grad(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None: the source's gradient is that of another tensor. Setting it is refused."""

    @grad.setter
    def grad(self, value: Tensor | None) -> NoReturn:
        raise _not_assigned()

    def detach(self) -> Tensor:
        """Return the value without a graph; writing to it writes to the source."""
        return derive(self.plain.detach(), self._origin)


def computing(compute: Read, origin: Origin) -> Read:
    """Return a function that reads a computed value, which knows where it comes from."""

    def read() -> Tensor:
        return derive(compute(), origin)

    return read


def viewing(source: Read, view: Callable[[Tensor], Tensor], origin: Origin) -> Read:
    """Return a function that reads a view of a source, and whose value knows where it comes from."""

    def read() -> Tensor:
        tensor = source()
        try:
            value = view(tensor)
        except NotImplementedError as error:
            raise _without_transforms(tensor) from error
        if type(value) is Tensor and not is_dynamo_compiling():
            # A view is an object of its own, that nobody else holds; and this costs no operation.
            value._origin = origin  # type: ignore[attr-defined]
            value.__class__ = Derived if type(tensor) is Derived else Target
        return value

    return read


@functools.cache
def refuse_registration() -> RemovableHandle:
    """From now on refuse to make the value of a tie a Parameter of a module, by torch's hook on registering them."""
    return register_module_parameter_registration_hook(_refuse_value)


def _refuse_value(module: nn.Module, name: str, value: Tensor | None) -> None:
    if isinstance(value, Target):
        raise KindError(
            "The value of a tie cannot become a Parameter: it would be a second one over the source's memory.",
            found=f"the value of a tied weight, assigned to '{name}' of {type(module).__name__}",
            expected="a Parameter, or a tie",
            fix="tie the attribute too: tied.tie(model, target, source); or nn.Parameter(value.detach().clone())",
        )


def _write_whole(target: Target, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ShapeError(
            "The data of a tied weight keeps its shape: the source has it too.",
            found=f"data of shape {tuple(value.shape)}",
            expected=f"shape {tuple(target.shape)}",
            fix="tied.untie(model, target) gives the attribute a Parameter of its own, of any shape",
        )
    target._origin.write(value)


def _without_transforms(tensor: Tensor) -> KindError:
    return KindError(
        f"The source is a {type(tensor).__name__} now, which the transform of a tie cannot be applied to.",
        found=f"a tensor of {type(tensor).__module__}",
        expected="a tensor that knows torch's operations on views",
        fix="call tied.untie(model) before the source is converted (quantized, say): every use is then converted",
    )


def derive(value: Tensor, origin: Origin) -> Tensor:
    """Return a computed value that knows where it comes from, except where Python cannot see writes (tracing)."""
    if type(value) is not Tensor or is_dynamo_compiling() or torch._C._is_tracing() or _is_proxied():
        return value
    derived = value.as_subclass(Derived)
    object.__setattr__(derived, "_origin", origin)
    return derived


def _is_proxied() -> bool:
    """Tell whether `make_fx` is tracing, which knows no subclass of ours."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _writing(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def write(self: Derived, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and self.requires_grad:
            raise WriteError(
                f"A tied weight that is computed cannot be changed by .{name}() where gradients are recorded.",
                found="an in-place write to a tensor that a tie computes",
                expected="a write under torch.no_grad(), which reaches the source",
                fix="with torch.no_grad(): ... or write to the source",
            )
        result = method(self.plain, *args, **kwargs)
        if not self.is_meta:
            self._origin.write(self.plain.detach())
        return self if isinstance(result, Tensor) else result

    write.__name__, write.__doc__ = name, f"Do `{name}`, and write the result to the source."
    return write


_KEPT = {"requires_grad_", "share_memory_", "rename_", "detach_", "retain_grad", "resize_", "resize_as_", "set_"}


def _install_writing_methods() -> None:
    for name in dir(Tensor):
        operator = (
            name.startswith("__i") and hasattr(Tensor, "__" + name[3:]) and name not in ("__init__", "__invert__")
        )
        method = name.endswith("_") and not name.startswith("_") and name not in _KEPT
        if (operator or method or name == "__setitem__") and callable(getattr(Tensor, name)):
            setattr(Derived, name, _writing(name))


_install_writing_methods()
