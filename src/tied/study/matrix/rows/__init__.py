"""All rows, in the order of the table.

Owns: the list. Read next: `study/matrix/run.py`, which runs them.
"""

from __future__ import annotations

from tied.study.matrix.row import Row
from tied.study.matrix.rows import (
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

THEMES = (train, convert, checkpoint, copies, graph, functional, source, user, distributed, quantization)
ROWS: tuple[Row, ...] = tuple(row for theme in THEMES for row in theme.ROWS)
