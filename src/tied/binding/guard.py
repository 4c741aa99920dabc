"""The guard: fails at the operation that cuts sharing, and names it.

Owns: watching a model for cuts, of declared ties and of plain torch sharing. It repairs nothing: `retie` does.

While a guard is active, the methods of `nn.Module` that change slots are wrapped; when the outermost of them
returns, every guarded model is looked over. What no method does (a write into `module._parameters`) is found
at the next look: a forward, an optimizer's step, or the end of the block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from tied.algebra import Address, show_address
from tied.binding.retie import is_cut
from tied.binding.slots import ModuleTree
from tied.binding.tie import unwrapped
from tied.errors import ConflictError
from tied.ledger import Tie, entries

WATCHED = (
    "_apply",
    "load_state_dict",
    "__setattr__",
    "__delattr__",
    "register_parameter",
    "register_buffer",
    "add_module",
)

_active: list[guard] = []
_depth = 0


class guard:
    """Fail at the operation that cuts what `model` shares: ties declared by `tied`, and plain `b.weight = a.weight`.

    Use it round the code that you do not trust, or as a hook:

        with tied.guard(model):
            prepare(model)

        optimizer.register_step_pre_hook(tied.guard(model))
        model.register_forward_pre_hook(tied.guard(model))

    Args:
        model: Watched, never changed.

    Raises:
        ConflictError: on leaving the operation that cut a tie; the model stays as that operation left it.

    Example:
        >>> import torch
        >>> model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        >>> model["b"].weight = model["a"].weight
        >>> try:
        ...     with guard(model):
        ...         model["a"].weight = nn.Parameter(torch.zeros(2, 2))
        ... except ConflictError as error:
        ...     print(error)
        guard(model)
          Linear.__setattr__('weight') cut what the model shares.
          found:    a.weight and b.weight are not one tensor any more
          expected: what was shared when the guard began
          fix:      tied.retie(model) for declared ties; tied.adopt(model) beforehand makes plain sharing declared
        The model stays as that operation left it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Remember what `model` shares now."""
        self.model = unwrapped(model)
        self.ties: tuple[Tie, ...] = tuple(tie for tie, _, _ in entries(self.model))
        self.groups = _groups(self.model)

    def __enter__(self) -> guard:
        """Watch from now on."""
        if not _active:
            _wrap()
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop watching, after a last look."""
        _active.remove(self)
        if not _active:
            _unwrap()
        if kind is None:
            self.look("something in the block")

    def __call__(self, *_: object) -> None:
        """Look now; takes whatever arguments a hook is given."""
        self.look("something since the last look")

    def look(self, culprit: str) -> None:
        """Raise if anything shared is shared no longer."""
        cut = [*self._cut_ties(), *self._cut_groups()]
        if cut:
            error = ConflictError(
                f"{culprit} cut what the model shares.",
                found="; ".join(cut[:4]) + (f"; and {len(cut) - 4} more" if len(cut) > 4 else ""),
                expected="what was shared when the guard began",
                fix="tied.retie(model) for declared ties; tied.adopt(model) beforehand makes plain sharing declared",
            )
            error.call, error.changed = "guard(model)", "The model stays as that operation left it."
            raise error

    def _cut_ties(self) -> list[str]:
        present = {tie: is_cut(module, tie.address[-1]) for tie, module, _ in entries(self.model)}
        return [f"{tie} does not hold any more" for tie in self.ties if present.get(tie, True)]

    def _cut_groups(self) -> list[str]:
        held = {address: id(tensor) for address, tensor in _tensors(self.model)}
        cut = [group for group in self.groups if len({held.get(address) for address in group}) > 1]
        return [" and ".join(map(show_address, group)) + " are not one tensor any more" for group in cut]


def _tensors(model: nn.Module) -> list[tuple[Address, Any]]:
    return [(s.address, s.tensor) for s in ModuleTree(model).slots() if s.kind in ("parameter", "buffer")]


def _groups(model: nn.Module) -> list[list[Address]]:
    groups: dict[int, list[Address]] = {}
    for address, tensor in _tensors(model):
        groups.setdefault(id(tensor), []).append(address)
    return [group for group in groups.values() if len(group) > 1]


# -- the wrapped methods of nn.Module ------------------------------------------------------------------

_originals: dict[str, Callable[..., Any]] = {}


def _wrap() -> None:
    for name in WATCHED:
        _originals[name] = getattr(nn.Module, name)
        setattr(nn.Module, name, _watched(name, _originals[name]))


def _unwrap() -> None:
    for name, original in _originals.items():
        setattr(nn.Module, name, original)
    _originals.clear()


def _watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        global _depth
        _depth += 1
        try:
            result = original(self, *args, **kwargs)
        finally:
            _depth -= 1
        if _depth == 0:
            for watcher in list(_active):
                watcher.look(_culprit(self, name, args))
        return result

    return method


def _culprit(module: nn.Module, name: str, args: tuple[Any, ...]) -> str:
    shown = {"_apply": "_apply (.to, .to_empty, .half ...)"}.get(name, name)
    what = f"{type(module).__name__}.{shown}"
    return f"{what}({args[0]!r})" if args and isinstance(args[0], str) else what
