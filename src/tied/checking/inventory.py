"""The inventory: every name of a model with its tensor, and which of them share memory; made in one walk.

Owns: walking a model. Must not look into tensors, nor change anything. Read next: `groups.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from tied.ledger import LINKS, PLANT
from tied.memory.overlap import Sharing, Spans, sharing, spans


@dataclass
class Inventory:
    """Every name of a model with its tensor: those of Parameters in the order of `named_parameters`, then buffers.

    Attributes:
        model: The model.
        modules: Every module under every one of its paths.
        names: The names; a tensor stands under each of its own.
        tensors: What is there.
        parameters: How many of the names are those of Parameters; they come first.
    """

    model: nn.Module
    modules: dict[str, nn.Module]
    names: list[str]
    tensors: list[Tensor]
    parameters: int

    @classmethod
    def of(cls, model: nn.Module) -> Inventory:
        """Walk a model, shared modules at each of their places."""
        modules, buffered = dict(walk(model)), list[tuple[str, nn.Module]]()
        names, tensors = list[str](), list[Tensor]()
        for path, module in modules.items():
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    names.append(prefix + name)
                    tensors.append(parameter)
            if module._buffers:
                buffered.append((prefix, module))
        count = len(names)
        for prefix, module in buffered:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    names.append(prefix + name)
                    tensors.append(buffer)
        return cls(model, modules, names, tensors, count)

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each name."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def _spans(self) -> Spans:
        return spans(self.tensors)

    @property
    def odd(self) -> list[int]:
        """The positions of the tensors that are not plain, contiguous memory."""
        return self._spans.odd

    @cached_property
    def sharing(self) -> Sharing:
        """The positions that hold one object, or overlap in memory, group by group."""
        return sharing(self.tensors, self._spans)

    @property
    def bytes(self) -> list[int]:
        """How many bytes the tensor at each position takes, as if it were stored densely."""
        return self._spans.sizes

    @cached_property
    def has_ties(self) -> bool:
        """Whether `tied` declared anything on the model."""
        return any(LINKS in own or PLANT in own for own in map(vars, self.modules.values()))

    def has(self, *classes: type[nn.Module]) -> bool:
        """Tell whether a module of one of these classes is in the model."""
        return any(issubclass(each, classes) for each in self._classes)

    @cached_property
    def _classes(self) -> set[type[nn.Module]]:
        return set(map(type, self.modules.values()))

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor under a name; None where a tie computes it, or nothing is."""
        path, _, attribute = name.rpartition(".")
        module = self.modules.get(path)
        for slots in (module._parameters, module._buffers) if module is not None else ():
            if attribute in slots:
                return slots[attribute]
        return None

    def owner(self, name: str) -> nn.Module:
        """Return the module that holds a name."""
        return self.modules[name.rpartition(".")[0]]

    def is_parameter(self, name: str) -> bool:
        """Tell whether a name is that of a Parameter."""
        path, _, attribute = name.rpartition(".")
        return path in self.modules and attribute in self.modules[path]._parameters

    def is_target(self, name: str) -> bool:
        """Tell whether `tied` ties a name to another."""
        path, _, attribute = name.rpartition(".")
        return path in self.modules and attribute in (vars(self.modules[path]).get(LINKS) or ())

    @cached_property
    def parameter_names(self) -> list[str]:
        """The names of Parameters, those included that a tie computes."""
        names = self.names[: self.parameters]
        for path, module in self.modules.items() if self.has_ties else ():
            targets = [name for name in vars(module).get(LINKS) or () if name not in module._parameters]
            names += [f"{path}.{name}" if path else name for name in targets]
        return names


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every one of its paths; a module inside itself is not walked again."""
    yield "", model
    waiting = [("", iter(model._modules.items()), frozenset({id(model)}))]
    while waiting:
        prefix, children, above = waiting[-1]
        for name, child in children:
            if child is None or id(child) in above:
                continue
            path = prefix + name
            yield path, child
            if child._modules:
                waiting.append((f"{path}.", iter(child._modules.items()), above | {id(child)}))
                break
        else:
            waiting.pop()
