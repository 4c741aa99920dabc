"""The shelf: the tensors of a model, each object once, with all its names; made in one walk.

Owns: walking a model. Must not look into tensors, nor change anything. Read next: `groups.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.checking.memory import overlapping
from tied.ledger import LINKS, PLANT


@dataclass
class Shelf:
    """Every tensor object of a model once, with all its names, in the order of `named_parameters`.

    Attributes:
        model: The model.
        modules: Every module under every one of its paths.
        tensors: The objects: parameters and buffers.
        names: The names of each.
        parameters: Which of them are Parameters.
    """

    model: nn.Module
    modules: dict[str, nn.Module]
    tensors: list[Tensor]
    names: list[Sequence[str]]
    parameters: list[bool]

    @classmethod
    def of(cls, model: nn.Module) -> Shelf:
        """Walk a model, shared modules at each of their places."""
        shelf, numbers = cls(model, dict(walk(model)), [], [], []), dict[int, int]()
        tensors, names, again = shelf.tensors, shelf.names, dict[int, list[str]]()
        for name, tensor, is_parameter in _slots(shelf.modules):
            place = numbers.setdefault(id(tensor), len(tensors))
            if place == len(tensors):
                tensors.append(tensor)
                names.append((name,))
                shelf.parameters.append(is_parameter)
            else:
                again.setdefault(place, []).append(name)
        for place, more in again.items():
            names[place] = (*names[place], *more)
        return shelf

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of the tensor with a name."""
        return {name: place for place, names in enumerate(self.names) for name in names}

    @cached_property
    def joined(self) -> list[list[int]]:
        """The positions of the tensors that overlap in memory, group by group."""
        return overlapping(self.tensors)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """How many numbers and bytes each tensor has, as if it were stored densely; none where it has no shape yet."""
        numbers = [0 if is_lazy(tensor) else tensor.numel() for tensor in self.tensors]
        return [(n, n and n * tensor.element_size()) for n, tensor in zip(numbers, self.tensors, strict=True)]

    @cached_property
    def has_ties(self) -> bool:
        """Whether `tied` declared anything on the model."""
        return any(LINKS in module.__dict__ or PLANT in module.__dict__ for module in self.modules.values())

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor under a name; None where a tie computes it, or nothing is."""
        place = self.places.get(name)
        return None if place is None else self.tensors[place]

    def owner(self, name: str) -> nn.Module:
        """Return the module that holds a name."""
        return self.modules[name.rpartition(".")[0]]

    def count_parameters(self, path: str) -> int:
        """Return how many names of Parameters there are below a path."""
        return sum(p is not None for _, module in walk(self.modules[path]) for p in module._parameters.values())


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


def _slots(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield every name with its tensor, and whether that is a Parameter."""
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
        for name, buffer in module._buffers.items() if module._buffers else ():
            if buffer is not None:
                yield prefix + name, buffer, False


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor, as if it were stored densely."""
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()
