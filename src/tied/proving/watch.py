"""Watching: which tensors a run computes with, whatever way it came to them.

Owns: seeing a read or write of the original, and a read of a trained Parameter past its gradient. Must not judge what
it saw of the copy: `rehearsal.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tied.errors import SharingError

MULTIPLES = ("mul", "div")  # with another tensor: a mask, a scale
SHIFT = 1e-3  # relative: small enough for no overflow, large enough to be seen in the loss


class Read(NamedTuple):
    """A trained Parameter, or a copy of it, that was computed with past its gradient.

    Attributes:
        parameter: Its name.
        holder: The name of the frozen Parameter that holds the copy; "" where the Parameter itself was read.
        operation: What computed with it.
    """

    parameter: str
    holder: str
    operation: str


class Watch(TorchDispatchMode):
    """Sees every operation of torch in a run.

    Attributes:
        detached: What was computed with past its gradient, and met other tensors in a differentiable computation.
    """

    def __init__(
        self, foreign: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None, shift: Read | None = None
    ) -> None:
        """Refuse what reads or writes one of the `foreign` tensors, and note what reads the `own` ones detached.

        Args:
            foreign: By name.
            own: The Parameters of the model that is run, by name.
            shift: Make every such read see other values, to learn whether the loss depends on it.
        """
        super().__init__()
        self.detached: list[Read] = []
        self._foreign = {_memory(tensor): name for name, tensor in foreign.items()}
        self._frozen: dict[int, str] = {}
        self._trained: dict[int, str] = {}
        for name, tensor in (own or {}).items():
            (self._trained if tensor.requires_grad else self._frozen).setdefault(_memory(tensor), name)
        self._carried: dict[int, tuple[Read, Tensor]] = {}
        self._shift = shift

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, having looked at what it is given."""
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        self._check_foreign(given)
        reads = {id(tensor): read for tensor in given if (read := self._read(tensor, func)) is not None}
        if not reads:
            return func(*args, **kwargs)
        alone = len(reads) == len(given)
        if self._is_use(func, given, reads):
            self.detached += [read for read in reads.values() if read not in self.detached]
            args, kwargs = tree_map(lambda t: self._shifted(t, reads.get(id(t))), (args, kwargs))
        found = func(*args, **kwargs)
        if func is torch.ops.aten.copy_.default:
            self._copied(given[0], reads.get(id(given[1])))
        elif not func._schema.is_mutable and (alone or _name(func) in MULTIPLES):
            self._follow(next(iter(reads.values())), max(t.numel() for t in given if id(t) in reads), found)
        return found

    def _check_foreign(self, given: list[Tensor]) -> None:
        names = sorted({self._foreign[memory] for tensor in given if (memory := _memory(tensor)) in self._foreign})
        if names:
            raise SharingError(
                "A copy of the model computes with the model's own tensors, so that its optimizer does not train it.",
                found=f"the copy reads {', '.join(names[:4])} of the original",
                expected="a copy that stands by itself, as copy.deepcopy, EMA and pickle need it too",
                fix="let no global or weak reference hold the source; tied.tie(model, target, source) needs none",
            )

    # -- past the gradient --------------------------------------------------------------------------

    def _read(self, tensor: Tensor, func: Any) -> Read | None:
        """Return what a tensor is a detached read of."""
        if not self._trained or (tensor.requires_grad and torch.is_grad_enabled()):
            return None
        memory = _memory(tensor)
        read = self._carried[memory][0] if memory in self._carried else Read(self._trained.get(memory, ""), "", "")
        return read._replace(operation=_name(func)) if read.parameter else None

    def _is_use(self, func: Any, given: list[Tensor], reads: Mapping[int, Read]) -> bool:
        """Tell whether a weight meets other tensors here: in a product, a convolution, a look-up, a norm.

        Operations entry by entry make a weight of a weight, and one that is given the Parameter itself too mixes the
        two, as a mask over a gradient does. A frozen copy counts where it is in the way of a gradient.
        """
        others = [tensor for tensor in given if id(tensor) not in reads]
        names = {read.parameter for read in reads.values()}
        if func._schema.is_mutable or torch.Tag.pointwise in func.tags or not torch.is_grad_enabled():
            return False
        if any(tensor.requires_grad and self._trained.get(_memory(tensor)) in names for tensor in others):
            return False
        is_in_the_way = any(tensor.requires_grad for tensor in others)
        return is_in_the_way if any(read.holder for read in reads.values()) else bool(others)

    def _shifted(self, value: Any, read: Read | None) -> Any:
        return value if read is None or read != self._shift else value * (1 + SHIFT)

    def _copied(self, into: Tensor, read: Read | None) -> None:
        """Follow what is copied into a frozen Parameter."""
        if read is not None and _memory(into) in self._frozen:
            self._carried[_memory(into)] = read._replace(holder=self._frozen[_memory(into)]), into

    def _follow(self, read: Read, size: int, found: Any) -> None:
        """Follow what was made of a read alone, entry by entry or in another order."""
        for made in _tensors(found):
            if made.numel() == size and not made.requires_grad and _memory(made) not in self._trained:
                self._carried[_memory(made)] = read, made  # held, so that no other tensor gets its memory


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results; those may be lists."""
    for value in values if isinstance(values, list | tuple) else (values,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _memory(tensor: Tensor) -> int:
    """Return where a tensor's memory lies; another number for each tensor that has none of the ordinary kind."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return -id(tensor)
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _name(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.")
