"""Transactions: what modules were before a change, put back wherever an exception interrupts it.

Owns: the one way back. Must not know what is changed, nor why. Read next: `binding/late_reading.py`.

A change checks and prepares everything; then it acts inside of a transaction. Whatever leaves that block, an error or
Ctrl-C at any line, leaves the modules as they were; and what is done after it changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tied.binding.commit.readers import let_readers_pass
from tied.ledger import PLANT, Tie, links

SLOTS = ("_parameters", "_buffers")


def on_the_way(model: nn.Module, ties: Iterable[Tie]) -> Iterator[nn.Module]:
    """Yield the modules that lead to the ends of some ties of a model: all that is changed with these."""
    yield model
    for tie in ties:
        for address in (tie.address, *tie.source.sources()):
            module: nn.Module | None = model
            for segment in address[:-1]:
                module = module._modules.get(segment) if module is not None else None
                if module is not None:
                    yield module


class Transaction:
    """Put modules back as they were, if the block raises.

    Classes, attributes, slots, hooks, links and declarations come back as the very objects that they were. Of tensors,
    the values do that were handed to `keep`.

        with Transaction(on_the_way(model, ties)) as undo:
            undo.keep(source)
            source.detach().copy_(value)
            install(module, name, link)
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Remember the modules."""
        found = dict.fromkeys(modules)
        homes = [link.home.module for module in found for link in links(module).values() if link.home is not None]
        found.update(dict.fromkeys(home for home in homes if home is not None))  # of a part, it may lie outside
        self._undo = ExitStack()
        self._undo.callback(torch.set_grad_enabled, torch.is_grad_enabled())  # no_grad() is left half way too
        self._undo.callback(_restore, [_Before(module) for module in found])

    def __enter__(self) -> Transaction:
        """Act from now on."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Undo, in reverse, where the block raised."""
        if kind is not None:
            self._undo.close()

    def callback(self, step: Callable[..., object], *args: Any) -> None:
        """Have one more step taken where the block raises."""
        self._undo.callback(step, *args)

    def keep(self, tensor: Tensor) -> None:
        """Remember the values of a tensor."""
        self.callback(tensor.detach().copy_, tensor.detach().clone())


class _Before:
    """One module as it was."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.held = module, type(module), dict(module.__dict__)
        self.slots = [(self.held[name], dict(dict.items(self.held[name]))) for name in SLOTS if name in self.held]
        self.flat = list(self.held.get("_flat_weights", ()))  # what a recurrent module changes in place
        self.hooks = tuple(self.held.get("_load_state_dict_pre_hooks", ()))
        self.links = [(vars(link), dict(vars(link))) for link in links(module).values()]
        plant = self.held.get(PLANT)
        self.plants = [] if plant is None else [(plant, dict(plant.declared), plant.known.copy())]

    def restore(self) -> None:
        """Put it back; what comes in is there before what goes out is gone."""
        for now, was in self.links:
            _put_back(now, was)
        for plant, declared, known in self.plants:
            _put_back(plant.declared, declared)
            plant.known.intersection_update(known)
        hooks = self.held.get("_load_state_dict_pre_hooks", {})
        for key in [key for key in hooks if key not in self.hooks]:
            del hooks[key]
        for key in filter(hooks.__contains__, self.hooks):
            hooks.move_to_end(key)
        self.held.get("_flat_weights", [])[:] = self.flat
        steps = (self._restore_slots, self._restore_others, self._restore_class)
        reads_more = _late_names(self.kind) > _late_names(type(self.module))
        for step in reversed(steps) if reads_more else steps:
            step()

    def _restore_slots(self) -> None:
        for now, was in self.slots:
            if [*map(id, dict.values(now))] != [*map(id, was.values())] or [*dict.keys(now)] != [*was]:
                dict.clear(now)
                dict.update(now, was)
        let_readers_pass()
        self.module.__dict__.update({name: self.held[name] for name in SLOTS if name in self.held})

    def _restore_others(self) -> None:
        now = self.module.__dict__
        _put_back(now, {**self.held, **{name: now[name] for name in SLOTS if name in now}})

    def _restore_class(self) -> None:
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind  # type: ignore[assignment]


def _restore(modules: list[_Before]) -> None:
    for before in modules:
        before.restore()


def _late_names(kind: type[nn.Module]) -> frozenset[str]:
    return getattr(kind, "_tied_names", frozenset())


def _put_back(now: dict[str, Any], was: dict[str, Any]) -> None:
    for key, value in was.items():
        if key not in now or now[key] is not value:
            now[key] = value
    for key in now.keys() - was.keys():
        del now[key]
