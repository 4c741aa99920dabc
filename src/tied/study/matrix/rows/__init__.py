"""All rows, in the order of the table.

Owns: the operations, one file per theme, each marked with `@row`. Must not judge what they leave:
`study/matrix/row.py` does. Read next: `study/matrix/run.py`, which runs them.
"""

from __future__ import annotations

from tied.study.matrix.row import Row
from tied.study.matrix.rows import (
    checkpoint,
    convert,
    copies,
    distributed,
    functional,
    quantization,
    source,
    train,
    user,
)

THEMES = (train, convert, checkpoint, copies, functional, source, user, distributed, quantization)
ROWS: tuple[Row, ...] = tuple(row for theme in THEMES for row in vars(theme).values() if isinstance(row, Row))
