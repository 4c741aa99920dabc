"""Rows on graphs: compiled and exported models."""

from __future__ import annotations

import torch

from tied.study.matrix.law import batch
from tied.study.matrix.row import row
from tied.study.matrix.subject import Subject

THEME = "graph"


@row(THEME, "compile")
def compiled(subject: Subject) -> Subject:
    """`model.compile(fullgraph=True, backend="aot_eager")`: no graph breaks, and it trains."""
    subject.model.compile(fullgraph=True, backend="aot_eager")
    return subject


@row(THEME)
def export_unflatten(subject: Subject) -> Subject:
    """`torch.export.export(model, ...)`, `torch.export.unflatten`, and the result trains."""
    program = torch.export.export(subject.model, (batch(subject, 1)[0],))
    return subject.then(torch.export.unflatten(program))
