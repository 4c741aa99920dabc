"""Working copies: copies of a model in float64 to experiment on, and the promise that the model itself stays as it was.

Owns: copying a model with its memory as it is shared, equal random numbers, and putting back what an experiment
touched. Must not know what is tied. Read next: `reference.py`.

`copy.deepcopy` gives each Parameter memory of its own, which mends or breaks what is to be examined. A working copy has
two Parameters over one memory where the model has.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from tied.checking.repointing import Repointing, hooks_of, reached
from tied.errors import DtypeError, KindError
from tied.memory.overlap import PLAIN, overlapping


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module behind `torch.compile` and data-parallel wrappers."""
    for name in ("_orig_mod", "module"):
        inner = model._modules.get(name)
        if inner is not None and type(model).__module__.startswith("torch."):
            return unwrapped(inner)
    return model


def working_copy(subject: Any, dtype: torch.dtype | None = torch.float64) -> Any:
    """Return a copy of `subject` whose numbers are of `dtype`, and overlap in memory exactly where the model's do.

    Hooks of tensors go along, and functions that reach the model by what they enclose reach the copy.

    Args:
        subject: A model, or a tuple of a model and functions that may enclose it.
        dtype: None leaves each number in the dtype that it has.

    Raises:
        KindError: a tensor has no values (on meta, or lazy), or the model cannot be copied.
        DtypeError: tensors of different dtypes lie over one memory.
    """
    parts = list(reached(subject))
    plain = list(_plain_tensors(parts))
    memo: dict[int, Any] = {}
    for positions in overlapping(plain):
        group = [plain[position] for position in positions]
        memo |= {id(old): new for old, new in zip(group, _over_one_memory(group, dtype), strict=True)}
    for tensor in plain:
        if id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, _cast(tensor.detach(), dtype))
    try:
        copied = copy.deepcopy(subject, memo)
    except Exception as error:
        raise KindError(
            f"{_name(subject)} cannot be copied, and the proof trains copies.",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a model that copy.deepcopy can copy",
            fix="take what cannot be copied (locks, files, generators) off the model first",
        ) from error
    repointed = Repointing(memo, (part for part in parts if isinstance(part, FunctionType)))
    for tensor in plain:
        for hook in hooks_of(tensor) if memo[id(tensor)].requires_grad else ():
            memo[id(tensor)].register_hook(repointed(hook))
        for hook in hooks_of(tensor, after=True):
            memo[id(tensor)].register_post_accumulate_grad_hook(repointed(hook))
    return tuple(map(repointed, subject)) if isinstance(subject, tuple) else copied


def _name(subject: Any) -> str:
    return type(subject[0] if isinstance(subject, tuple) else subject).__name__


def _plain_tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the parts of a model that can be cast; those of modules must have values."""
    for part in parts:
        if isinstance(part, torch.jit.ScriptModule):
            raise KindError(
                "A part of the model is TorchScript, in whose slots the proof cannot put tensors.",
                found=type(part).__name__,
                expected="ordinary modules",
                fix="verify the model before torch.jit.script or torch.jit.trace",
            )
        if isinstance(part, nn.Module):
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    _check_values(tensor)
        elif isinstance(part, Tensor) and _has_values(part) and (type(part) in PLAIN or _is_plain(part)):
            yield part


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a model, and what its hooks reach, hold in memory."""
    return (part for part in reached(model) if isinstance(part, Tensor) and _has_values(part))


def _has_values(tensor: Tensor) -> bool:
    return not (is_lazy(tensor) or tensor.is_meta)


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is a Parameter of somebody's own class, and no wrapper of other tensors."""
    return isinstance(tensor, Parameter) and not hasattr(tensor, "__tensor_flatten__")


def _check_values(tensor: Tensor) -> None:
    if hasattr(tensor, "_local_tensor"):
        raise KindError(
            "The model is sharded, and the proof runs in one process.",
            found=f"a {type(tensor).__name__}",
            expected="whole tensors",
            fix="verify the model before it is sharded",
        )
    if is_lazy(tensor) or tensor.is_meta:
        raise KindError(
            "The model has a tensor without values, so that nothing can be trained.",
            found="an uninitialized tensor of a lazy module" if is_lazy(tensor) else "a tensor on the meta device",
            expected="values in memory",
            fix="run one forward first" if is_lazy(tensor) else "load the model, or model.to_empty(device='cpu')",
        )


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy in `dtype`, where it holds real or complex numbers."""
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype, copy=True)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """Make of `new` what `old` is: a Parameter of the same kind, with the same attributes."""
    if isinstance(old, Parameter):
        new = torch.Tensor._make_subclass(type(old), new, old.requires_grad)
    for name, value in vars(old).items():
        setattr(new, name, value)
    return new


def _over_one_memory(tensors: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Copy tensors that overlap, so that their copies overlap in the same way."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        raise DtypeError(
            "Tensors of different dtypes lie over one memory.",
            found=", ".join(sorted(str(kind) for kind in kinds)),
            expected="one dtype, so that a step of the one is a step of the other",
            fix="give one of them memory of its own: p.data = p.data.clone()",
        )
    start = min(tensor.data_ptr() for tensor in tensors)
    places = [(tensor.data_ptr() - start) // tensor.element_size() for tensor in tensors]
    length = max(place + reach(tensor) for place, tensor in zip(places, tensors, strict=True))
    memory = _cast(tensors[0].new_zeros(length).detach(), dtype)
    copies: list[Tensor] = []
    for place, tensor in zip(places, tensors, strict=True):
        view = memory.as_strided(tensor.shape, tensor.stride(), place)
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
        view[once].copy_(tensor.detach()[once])
        copies.append(_like(tensor, view))
    return copies


def reach(tensor: Tensor) -> int:
    """Return the count of elements from a tensor's first to its last in memory, gaps included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


# -- the model stays as it was -------------------------------------------------------------------------


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Put back, afterwards, what an experiment changed: tensors of `model` that its hooks reach, and random numbers."""
    kept = [(tensor, tensor.detach().clone()) for tensor in _held(model)]
    dice = _dice()
    try:
        yield
    finally:
        _put_back(dice)
        with torch.no_grad():
            for tensor, value in kept:
                if not torch.equal(tensor, value):  # a write through `.data` counts no version
                    tensor.copy_(value)


def roll(seed: int) -> None:
    """Seed every source of random numbers that a forward may use."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _dice() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), devices, np.random.get_state(), random.getstate()


def _put_back(dice: tuple[Any, ...]) -> None:
    cpu, devices, numpy, python = dice
    torch.set_rng_state(cpu)
    if devices is not None:
        torch.cuda.set_rng_state_all(devices)
    np.random.set_state(numpy)
    random.setstate(python)
