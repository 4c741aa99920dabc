"""Rows on the source: it becomes computed, or another tensor or module takes its place.

Where the source is computed, the formula computes it by hand: the mask, the norm, the estimate.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tied.study.matrix.law import Check, Oracle, batch, bound, largest, near
from tied.study.matrix.row import row
from tied.study.matrix.subject import OTHER_SEED, Subject

THEME = "source"


def _pruned(subject: Subject) -> Subject:
    prune.l1_unstructured(subject.source, "weight", amount=0.5)
    mask = dict(subject.source.named_buffers())["weight_mask"].clone()
    return subject.computed({"weight": "weight_orig"}, lambda leaves: leaves["weight"] * mask)


@row(THEME)
def prune_source(subject: Subject) -> Subject:
    """`prune.l1_unstructured(source, "weight", 0.5)`: both uses are masked, and train."""
    return _pruned(subject)


@row(THEME)
def prune_decode_only(subject: Subject) -> list[Check]:
    """Prune the source, change its values, and decode without encoding.

    Torch refreshes the masked weight in the source's own forward only.
    """
    pruned = _pruned(subject)
    with torch.no_grad():
        pruned.leaves()["weight"].mul_(2)
    found = largest(pruned.decoding_matrix() - pruned.matrix(Oracle(pruned).weight()))
    return [near("fresh", found, bound(pruned), "the matrix that decodes")]


def _normed(leaves: Mapping[str, Tensor]) -> Tensor:
    direction, length = leaves["direction"], leaves["length"]
    return direction * (length / direction.norm(dim=1, keepdim=True))


@row(THEME)
def weight_norm_source(subject: Subject) -> Subject:
    """`parametrizations.weight_norm(source)`: both uses are normed, and train."""
    parametrizations.weight_norm(subject.source)
    where = "parametrizations.weight.original"
    return subject.computed({"direction": f"{where}1", "length": f"{where}0"}, _normed)


@row(THEME)
def spectral_norm_eval(subject: Subject) -> Subject:
    """`parametrizations.spectral_norm(source)`, then `model.eval()`: both uses are normed, and train."""
    parametrizations.spectral_norm(subject.source)
    subject.model.eval()
    state = dict(subject.source.named_buffers())
    left, right = (state[f"parametrizations.weight.0.{name}"].clone() for name in ("_u", "_v"))
    leaf = {"weight": "parametrizations.weight.original"}
    return subject.computed(leaf, lambda leaves: leaves["weight"] / (left @ leaves["weight"] @ right))


@row(THEME)
@torch.no_grad()
def spectral_norm_train(subject: Subject) -> list[Check]:
    """`parametrizations.spectral_norm(source)` in training: both uses in one forward see one weight.

    Torch improves its estimate at every read. Here one forward is compared with the formula at the first read.
    """
    parametrizations.spectral_norm(subject.source)
    normed = subject.computed({"weight": "parametrizations.weight.original"}, lambda leaves: leaves["weight"])
    leaves, (inputs, _) = normed.leaves(), batch(normed, 1)
    original = leaves["weight"]
    original.copy_(torch.linspace(-0.5, 1, original.numel(), dtype=original.dtype).sin().view_as(original))
    once = copy.deepcopy(subject.source).weight
    assert isinstance(once, Tensor)
    found = largest(normed(inputs) - subject.kind.compute(leaves, once, inputs))
    return [near("one weight", found, bound(normed), "the output")]


@row(THEME)
def replace_source(subject: Subject) -> Subject:
    """`encoder.weight = nn.Parameter(...)`, with other values."""
    setattr(subject.source, "weight", nn.Parameter(torch.randn_like(subject.leaves()["weight"])))  # noqa: B010
    return subject


@row(THEME)
def replace_source_module(subject: Subject) -> Subject:
    """`model.encoder = nn.Linear(...)` (or an embedding), with other values."""
    path, _, name = subject.column.source.rpartition(".")
    fresh = subject.kind.start(OTHER_SEED, torch.float64).get_submodule(subject.column.source.split(".")[0])
    setattr(subject.model.get_submodule(path), name, fresh)
    return subject
