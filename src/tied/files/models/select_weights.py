"""Which names of a checkpoint are the weights that a model asks for.

Owns: the usual keys under which people nest a state dict, and the prefixes that wrappers leave behind. Must not
read tensors. Read next: `load.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from tied.files.models.model_names import plain_name
from tied.files.rewriting.expanded_view import Expansion

NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.")

Names = dict[str, str]
"""Names as the model has them, each with the name in the file."""


def weights_of(file: Expansion, wanted: Collection[str]) -> Names:
    """Return the names of the file that are the model's weights, with the names in the file.

    Of all places where a state dict may be nested (`{"model": ..., "optimizer": ...}`), and of all prefixes that
    every name of it has, those are taken that fit most of the wanted names; where none fits, all names as they are.
    What lies beside a nested state dict is no weight and is left out.

    Args:
        file: The checkpoint.
        wanted: The names that the model has.
    """
    one = file.checkpoint.files[0] if len(file.checkpoint.files) == 1 else None
    names = {plain_name(name): name for name in file.names()}
    if len(names) < len(file.names()):  # with and without the segment of torch.compile: both stay as they are
        names = {name: name for name in file.names()}
    found = list(_places(names, one.loaded if one is not None else None))
    return max(found, key=lambda place: len(place.keys() & set(wanted)))


def _places(names: Names, tree: Any) -> Iterator[Names]:
    yield names
    inside = cast("Mapping[Any, Any]", tree) if isinstance(tree, Mapping) else {}
    for key in NESTED:
        if isinstance(inside.get(key), Mapping):
            yield from _places(_below(names, f"{key}."), inside[key])
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            yield from _places(_below(names, prefix), None)


def _below(names: Names, prefix: str) -> Names:
    return {name.removeprefix(prefix): whole for name, whole in names.items() if name.startswith(prefix)}
