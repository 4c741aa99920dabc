"""The whole matrix, on the torch that is installed: every cell is as expected, and `tied` is nowhere wrong.

`pytest tests/study/matrix/test_whole.py --update-golden` writes the expectation for this torch anew.
"""

from pathlib import Path

import pytest
import torch

from tied.study import matrix
from tied.study.matrix import known_results
from tied.study.matrix.report import Record
from tied.study.matrix.row import Outcome
from tied.study.matrix.rows import ROWS
from tied.study.matrix.run import Plan, run

FOLDER = Path(matrix.__file__).parents[1] / "data"


@pytest.mark.slow
def test_every_cell_is_as_expected(request):
    known = known_results.nearest()
    record = Record(ROWS, known)
    for event in run(Plan(("transposed", "identity"))):
        if isinstance(event, Outcome):
            record.add(event)
    assert not [f"{one.row} / {one.recipe}: {one.reason}" for one in record.wrong_of_ours()]
    if request.config.getoption("--update-golden"):
        major, minor, *_ = known_results.release(torch.__version__)
        version = ".".join(map(str, known_results.release(torch.__version__)))
        text = known_results.to_text(record.in_order(), version, known if known.is_of_this_torch else None)
        (FOLDER / f"matrix-torch-{major}.{minor}.json").write_text(text, encoding="utf-8", newline="\n")
    elif known.is_of_this_torch:
        assert list(map(str, record.differences())) == []
