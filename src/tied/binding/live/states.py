"""What a live slot is: the table of its states, as one function of what two slots hold.

Owns: the decision, and nothing else. Must not read slots, nor change them. Read next: `live_slots.py`.
"""

from __future__ import annotations

from enum import Enum, auto

from torch import Tensor
from torch.nn import Parameter

from tied.sharding import is_sharded


class Verdict(Enum):
    """What a live slot is, by what it holds and what its source's slot holds."""

    HOLDS = auto()  # the two are one
    FOLLOWS = auto()  # the source was replaced: the slot takes what the source holds
    PEEKS = auto()  # reads what the source holds, and keeps what a tool has put there for a while
    OWN = auto()  # reads what it holds: the weight is here and nowhere else
    LATE = auto()  # the source holds no ordinary tensor: late reading knows what to do
    SPLIT = auto()  # two values, each of which somebody wrote


def judge(held: Tensor, source: Tensor | None, *, is_foreign: bool) -> Verdict:
    """Decide what a slot is.

    Args:
        held: What the slot holds.
        source: What the source's slot holds; None where it holds nothing, since its module computes it.
        is_foreign: Whether somebody wrote `held` there, and it is not what the tie put there.
    """
    if held is source:
        return Verdict.HOLDS
    if source is None or is_sharded(source) or is_sharded(held):
        return Verdict.LATE
    if source.is_meta and not held.is_meta:  # the source was offloaded, its values are here
        return Verdict.OWN
    if not is_foreign or (not isinstance(source, Parameter) and isinstance(held, Parameter)):
        return Verdict.FOLLOWS  # replaced for good, or for a while (functional_call, vmap)
    if held.is_meta:  # the target was offloaded
        return Verdict.OWN if source.is_meta else Verdict.PEEKS
    if isinstance(source, Parameter) and not isinstance(held, Parameter):  # the target was replaced for a while
        return Verdict.OWN
    return Verdict.FOLLOWS if is_same(held, source) else Verdict.SPLIT


def is_same(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same values, and are of the same shape and kind."""
    kinds = [(t.shape, t.dtype, t.device, t.layout) for t in (tensor, other)]
    if kinds[0] != kinds[1] or tensor.is_meta:
        return False
    here, there = tensor.detach(), other.detach()
    return (here.data_ptr(), here.stride()) == (there.data_ptr(), there.stride()) or bool(
        ((here == there) | ((here != here) & (there != there))).all()
    )
