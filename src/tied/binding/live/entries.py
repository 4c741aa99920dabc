"""Entries of a module's slots: one taken away, one put in where it stood.

Owns: new dicts of entries, in which live ones stay so. Must not put them into modules. Read next: `live_slots.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tied.binding.live.live_slots import Live


def without(place: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the entries but one; live ones stay so."""
    if isinstance(place, Live) and name in place.links:
        return place.without(name)
    kept = {key: value for key, value in dict.items(place) if key != name}
    return place.remade(kept) if isinstance(place, Live) else kept


def with_entry(place: dict[str, Any], name: str, tensor: Tensor, order: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries and one more, where `order` has it; live ones stay so."""
    entries = ordered({**dict(dict.items(place)), name: tensor}, order)
    return place.remade(entries) if isinstance(place, Live) else entries


def ordered(place: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries in the order they had before anything was tied, newer ones last."""
    ranks = {name: rank for rank, name in enumerate(order)}
    return dict(sorted(place.items(), key=lambda item: ranks.get(item[0], len(order))))
