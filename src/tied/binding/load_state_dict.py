"""Loading with a winner: `load_state_dict` for models that share, by declared ties or by plain torch.

Owns: the public loader of state dicts. Must not open files. Read next: `state_dict_hooks.py`, which does the work.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tied.algebra import Address, Ref
from tied.binding.adopt import adopt, shared, tensor_slots
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.followers.transformers_keys import withdraw
from tied.binding.late_reading import read, uninstall
from tied.binding.state_dict_hooks import check_winner, reconcile_all
from tied.binding.tie import unwrapped
from tied.errors import during
from tied.ledger import entries


def load_state_dict(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    strict: bool = True,
    assign: bool = False,
    keep: Literal["source", "target", "mean"] | None = None,
) -> object:
    """Load a state dict, keep all sharing, and say which value wins where it has two different ones for a tie.

    Plain sharing (`b.weight = a.weight`) is kept too, where torch cuts it with `assign=True`, and lets the last of
    two different values win without a word. One key is enough for a tensor that stands in two slots.

    Args:
        model: Changed in place.
        state_dict: As torch's; it is not changed.
        strict: As torch's.
        assign: As torch's.
        keep: The winner of a conflict: `"source"`, `"target"`, or `"mean"`, the least-squares source.

    Returns:
        What torch returns: the missing and unexpected keys.

    Raises:
        ConflictError: the values differ, and `keep` names no winner.
    """
    with during(f"load_state_dict(model, state_dict, keep={keep!r})"):
        check_winner(keep)
        inner = unwrapped(model)
        plain = {tie.address for tie in shared(tensor_slots(inner))}
        try:
            adopt(inner)
            state = dict(state_dict)
            reconcile_all(model, state, "", keep=keep)
            found = model.load_state_dict(state, strict=strict, assign=assign)
            _share_again(inner, plain)
        except BaseException:
            _share_again(inner, plain)
            raise
        return found


def _share_again(model: nn.Module, targets: set[Address]) -> None:
    """Undo the adoption: put each source's present tensor into its other slots."""
    adopted = [entry for entry in entries(model) if entry[0].address in targets and isinstance(entry[0].source, Ref)]
    with Transaction(on_the_way(model, (tie for tie, _, _ in adopted))):
        for tie, module, link in adopted:
            link.forget()
            withdraw(model, tie)
            uninstall(module, tie.address[-1], read(module, tie.address[-1], link))
