"""All rows, in the order of the table.

Owns: the list. Read next: `run.py`, which runs them.
"""

from __future__ import annotations

from tied.study.matrix import (
    checkpoint,
    convert,
    copies,
    distributed,
    functional,
    graph,
    quantization,
    source,
    train,
    user,
)
from tied.study.matrix.row import Row

THEMES = (train, convert, checkpoint, copies, graph, functional, source, user, distributed, quantization)
ROWS: tuple[Row, ...] = tuple(row for theme in THEMES for row in theme.ROWS)
