"""The names of a model: what its file calls each value, and which of them are expressions of others.

Owns: the way from slots to names, for saving and loading alike. Must not change the model, nor open files.
Read next: `payload.py`, which saves, and `load.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import Address, Expression
from tied.binding.link import Link
from tied.binding.slots import links
from tied.binding.tie import unwrapped
from tied.errors import KindError
from tied.files.auditing.shared_memory import views
from tied.files.reading.file_ledger import name_of, reference, values_only
from tied.files.reading.refusal import shown
from tied.ledger import entries, resolve

COMPILED = "_orig_mod."


@dataclass(frozen=True)
class Names:
    """What a file of a model would name, were nothing shared.

    Attributes:
        model: The module behind its wrappers.
        keys: The state dict's key of each value that is in it.
        values: Those values, by name; Parameters as such.
        sources: The names that equal expressions of other names, which are in none themselves: targets of
            ties, second names of a Parameter, views.
        computed: The targets of ties whose sources no state dict names: computed ones, or some outside the model.
    """

    model: nn.Module
    keys: dict[str, str]
    values: dict[str, Any]
    sources: dict[str, Expression]
    computed: dict[str, Link]

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """Read the names off a model.

        Raises:
            KindError: Two values have one name.
        """
        model = inner(model)
        keys, values = dict[str, str](), dict[str, Any]()
        for key, value in model.state_dict(keep_vars=True).items():
            name = plain_name(key)
            if name in keys:
                raise KindError(
                    f"Two values of the model have the name {shown(name)}.",
                    found=f"{shown(keys[name])} and {shown(key)}",
                    expected="names that differ in more than the segment of torch.compile",
                    fix="rename one of the modules",
                )
            keys[name], values[name] = key, value
        sources = views({name: value for name, value in values.items() if has_memory(value)})
        return cls(model, keys, values, sources, {})._with_ties()

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The values that are no expressions of others, by name."""
        return {name: value for name, value in self.values.items() if name not in self.sources}

    def _with_ties(self) -> Names:
        for name, tied, link in _declared(self.model):
            source = None if tied is None else _named(tied, self.sources)
            if source is None or not all(name_of(address) in self.values for address in source.sources()):
                self.computed[name] = link
            if source is not None:
                self.sources[name] = source
        return self


def inner(model: nn.Module) -> nn.Module:
    """Return the module behind `torch.compile` and behind the wrappers of data parallelism."""
    found = unwrapped(model)
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return inner(found.module) if isinstance(found, wrappers) else found


def plain_name(key: str) -> str:
    """Return a state dict's key without the segments that `torch.compile` puts in."""
    return key.replace(COMPILED, "")


def has_memory(value: Any) -> bool:
    """Tell whether a value of a state dict is a strided tensor with a shape."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return plain and not isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer)


def _named(source: Expression, known: Mapping[str, Expression]) -> Expression:
    """Return an expression over addresses as one over the names that are stored."""
    names: dict[Address, Expression] = {}
    for address in source.sources():
        name = plain_name(name_of(address))
        names[address] = known.get(name, reference(name))
    return values_only(source.substitute(names))


def _declared(model: nn.Module) -> Iterator[tuple[str, Expression | None, Link]]:
    """Yield every tied slot that a state dict would name if it were not tied, under each of its names.

    With the expression over the model's addresses, resolved to its roots; None where a source lies outside.
    """
    late = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if links(m)]
    found = list(entries(model)) if late else []
    roots = resolve({tie.address: tie.source for tie, _, _ in found})
    known = {(id(module), tie.address[-1]): roots[tie.address] for tie, module, _ in found}
    for path, module in late:
        for name, link in links(module).items():
            if name not in module._non_persistent_buffers_set:
                key = f"{path}.{name}" if path else name
                yield plain_name(key), known.get((id(module), name)), link
