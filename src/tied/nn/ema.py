"""A slow copy of a model: the exponential moving average of its weights, as a target for training.

Owns: `EMA`. Must not hold the model that it follows: `update` is handed it. Read next: `revin.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tied.binding.tie import unwrapped
from tied.errors import DtypeError, KindError, ShapeError, TieError, during

Buffers = Literal["average", "copy", "own"]
LEAST_STEP = 64  # in units of the dtype's epsilon: smaller steps are lost to rounding


class EMA(nn.Module):
    """A teacher whose weights follow a model's: a soft tie, `target <- decay * target + (1 - decay) * source`.

    Law: after `n` updates every weight is the mean of the model's weights at these updates, where the one `k`
    updates ago counts `decay ** k`; so the first update copies, and the random start counts for nothing. With
    `debias=False` it starts from today's weights, which then count `decay ** n`.

    The teacher gets no gradient and gives none. It is a copy, in this module's state dict together with the number
    of updates. Ties inside the model hold in the teacher too: a source is averaged once, and its targets read
    the average. The model itself is not held: copying the EMA copies no student. The teacher has modes of
    its own: call `eval()` for targets without dropout.

    Args:
        model: Copied; it may be a part of a larger model.
        decay: Of the average, from 0 to less than 1. It may be set to another value between updates.
        debias: Whether today's weights count for nothing after the first update.
        buffers: `"average"`: buffers of floating-point numbers are averaged, the others copied; `"copy"`: all
            are copied; `"own"`: the teacher keeps its own, for one that computes its batch statistics itself.
        device: Of the teacher; that of the model where not given.
        dtype: Of the teacher's floating-point weights; those of the model where not given. A half-precision
            average would stand still, so it needs `torch.float32` here.

    Raises:
        KindError: `model` is no module, or `buffers` another word.
        ShapeError: `decay` is outside its range.
        DtypeError: a weight has too few digits for steps of `1 - decay`.

    Example:
        >>> student = nn.Linear(3, 2)
        >>> teacher = EMA(student, decay=0.99)
        >>> loss = (student(torch.ones(4, 3)) - teacher(torch.zeros(4, 3))).square().mean()
        >>> loss.backward()
        >>> teacher.update(student)
        >>> torch.equal(teacher.module.weight, student.weight)
        True

    Source:
        Tarvainen & Valpola 2017, arXiv:1703.01780 (mean teacher); Grill et al. 2020, arXiv:2006.07733, section 3.1
        (target network); Kingma & Ba 2015, arXiv:1412.6980, section 3 (the correction of the start).
    """

    updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        *,
        debias: bool = True,
        buffers: Buffers = "average",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with during(f"EMA({type(model).__name__}, decay={decay!r})"):
            model = unwrapped(model)
            _check_options(decay, buffers)
            module = copy.deepcopy(model).to(device=device, dtype=dtype).requires_grad_(False)
            _check_digits(module, decay)
        self.module, self.decay, self.debias, self.buffer_policy = module, decay, debias, buffers
        place = next((tensor.device for _, _, tensor in _slots(module)), torch.device("cpu"))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=place))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the teacher's weights a step towards those of `model`.

        Args:
            model: The one that was copied, or one that is built alike.

        Raises:
            ShapeError: it has other names or shapes than the teacher; nothing was changed.
            DtypeError: a weight of the teacher has too few digits.
        """
        with during(f"EMA.update({type(model).__name__})"):
            _check_options(self.decay, self.buffer_policy)
            _check_digits(self.module, self.decay)
            pairs = _pairs(self.module, unwrapped(model))
        self.updates += 1
        step = 1 - self.decay
        weight = step / (1 - self.decay ** int(self.updates)) if self.debias else step
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for kind, ours, theirs in pairs:
            policy = "average" if kind == "parameter" else self.buffer_policy
            if policy == "average" and (ours.is_floating_point() or ours.is_complex()):
                averages.append(ours)
                values.append(theirs.to(device=ours.device, dtype=ours.dtype))
            elif policy != "own":
                ours.copy_(theirs)
        if averages:  # one kernel for all
            torch._foreach_lerp_(averages, values, weight)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Return what the teacher says, without a gradient."""
        return self.module(*arguments, **options)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"decay={self.decay}, debias={self.debias}, buffers='{self.buffer_policy}'"


def _slots(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield kind, address and tensor of every parameter and buffer."""
    yield from (("parameter", name, tensor) for name, tensor in module.named_parameters())
    yield from (("buffer", name, tensor) for name, tensor in module.named_buffers())


def _pairs(teacher: nn.Module, student: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Pair every tensor of the teacher with its namesake, which may be tied to something outside the student."""
    ours = list(_slots(teacher))
    strange = {name for _, name, _ in _slots(student)} - {name for _, name, _ in ours}
    pairs = [(kind, tensor, _at(student, name)) for kind, name, tensor in ours]
    wrong = [name for (_, name, tensor), pair in zip(ours, pairs, strict=True) if pair[2].shape != tensor.shape]
    if strange or wrong:
        raise _unlike(sorted(strange)[0] if strange else wrong[0], "a name or a shape that only one of them has")
    return pairs


def _at(student: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    try:
        tensor = getattr(student.get_submodule(path), attribute)
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor):
        raise _unlike(name, "a name that the model does not have")
    return tensor


def _unlike(name: str, found: str) -> TieError:
    return ShapeError(
        "The model is not built like the teacher.",
        found=f"'{name}': {found}",
        expected="the model that was copied, with the ties that it had then",
        fix="make the EMA after all ties; pass the model itself, not a wrapper such as DistributedDataParallel",
    )


def _check_options(decay: object, buffers: object) -> None:
    if not isinstance(decay, Real) or not 0 <= float(decay) < 1:
        raise ShapeError(
            "The decay is outside its range.",
            found=f"decay={decay!r}",
            expected="a number from 0 to less than 1",
            fix="decay=0.999",
        )
    if buffers not in ("average", "copy", "own"):
        raise KindError(
            "There is no such way to treat buffers.",
            found=f"buffers={buffers!r}",
            expected="'average', 'copy' or 'own'",
            fix="buffers='average'",
        )


def _check_digits(module: nn.Module, decay: float) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and 1 - decay < LEAST_STEP * torch.finfo(parameter.dtype).eps:
            raise DtypeError(
                f"'{name}' has too few digits: steps of 1 - decay would be lost to rounding.",
                found=f"{parameter.dtype} and decay={decay!r}",
                expected=f"1 - decay of at least {LEAST_STEP * torch.finfo(parameter.dtype).eps:.0e}",
                fix="EMA(model, dtype=torch.float32), which follows a model in half precision",
            )
