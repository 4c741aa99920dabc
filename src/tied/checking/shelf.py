"""The shelf: the tensors of a model, each object once, with all its names; made in one walk.

Owns: walking a model. Must not look into tensors, nor change anything. Read next: `groups.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    names: list[list[str]]
    parameters: list[bool]

    @classmethod
    def of(cls, model: nn.Module) -> Shelf:
        """Walk a model, shared modules at each of their places."""
        shelf, places = cls(model, {}, [], [], []), dict[int, int]()
        for path, module in walk(model):
            shelf.modules[path] = module
            prefix = f"{path}." if path else ""
            for is_parameter, slots in ((True, module._parameters), (False, module._buffers)):
                for name, tensor in slots.items():
                    if tensor is None:
                        continue
                    place = places.setdefault(id(tensor), len(places))
                    if place == len(shelf.tensors):
                        shelf.tensors.append(tensor)
                        shelf.names.append([prefix + name])
                        shelf.parameters.append(is_parameter)
                    else:
                        shelf.names[place].append(prefix + name)
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
    waiting: list[tuple[str, nn.Module, frozenset[int]]] = [("", model, frozenset())]
    while waiting:
        path, module, above = waiting.pop()
        yield path, module
        if module._modules:
            above = above | {id(module)}
            prefix = f"{path}." if path else ""
            children = [(prefix + name, child, above) for name, child in module._modules.items() if child is not None]
            waiting += [child for child in reversed(children) if id(child[1]) not in above]


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor, as if it were stored densely."""
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()
