"""Shared memory, as expressions: which of some tensors are views of others.

Owns: the choice of the name that keeps a memory. Must not read values. Read next: `files/models/model_names.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from torch import Tensor

from tied.algebra import Expression, Ref, parse
from tied.files.reading.file_ledger import name_of, reference
from tied.memory import IDENTITY, OVERLAP
from tied.memory.overlap import overlapping, pieces
from tied.memory.view_relation import relation

MOST_BASES = 100  # tensors of one memory, none of which holds another, among which a base is looked for


def views(tensors: Mapping[str, Tensor]) -> dict[str, Expression]:
    """Return the tensors that lie whole in another one's memory, each with the expression that it is.

    Law: the expression's value is the tensor itself: same memory, same sizes. The sources are none of the keys:
    each memory keeps one name, the largest tensor's, and among equals the first. What overlaps in a way that the
    language cannot say (half of each, or another dtype) is not listed, and neither are parts that share nothing.

    Example:
        >>> import torch
        >>> w = torch.zeros(4, 6)
        >>> {name: str(e) for name, e in views({"a": w, "b": w.t(), "c": w[1:3], "d": w.flatten()[4:8]}).items()}
        {'b': 'a.T', 'c': 'a[1:3]', 'd': 'a.flatten()[4:8]'}
    """
    found: dict[str, Expression] = {name: reference(first) for name, first in _same_objects(tensors)}
    names = [name for name in tensors if name not in found]
    for group in overlapping([tensors[name] for name in names]):
        kept: dict[str, tuple[int, int]] = {}
        for name in sorted((names[position] for position in group), key=lambda name: -_reach(tensors[name])):
            span = _span(tensors[name])
            bases = (k for k, whole in islice(kept.items(), MOST_BASES) if _contains(whole, span))
            expression = next((e for k in bases if (e := _view(k, tensors[k], tensors[name]))), None)
            if expression is None:
                kept[name] = span
            else:
                found[name] = expression
    return {name: _root(expression, found) for name, expression in found.items()}


def _same_objects(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            yield name, known


def _root(expression: Expression, found: Mapping[str, Expression]) -> Expression:
    """Replace a name that is itself a view by what it is."""
    if isinstance(expression, Ref):
        return found.get(name_of(expression.address), expression)
    definitions = {a: found[name_of(a)] for a in expression.sources() if name_of(a) in found}
    return expression.substitute(definitions) if definitions else expression


def _reach(tensor: Tensor) -> int:
    """Return how many different elements a tensor has: those of an expanded axis are one."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else 1
    return elements


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor and one past its last; nothing where it has several memories, or none."""
    found = pieces(tensor)
    return (found[0].start, found[0].stop) if len(found) == 1 else (0, 0)


def _contains(whole: tuple[int, int], part: tuple[int, int]) -> bool:
    return whole[0] <= part[0] and part[1] <= whole[1]


def _view(name: str, source: Tensor, target: Tensor) -> Expression | None:
    suffix = relation(source, target)
    if suffix == OVERLAP:
        return None
    return parse(f"{reference(name)}{'' if suffix == IDENTITY else suffix}")
