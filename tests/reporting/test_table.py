"""Tables as text, whole."""

import pytest

from tied.reporting.table import Cell, Table, fit, to_text

TABLE = Table(
    ("recipe", "para-\nmeters", "error"),
    ((Cell("tied"), Cell("1,104", "good"), Cell("0.1")), (Cell("untied"), Cell("2,128", "bad"), Cell("-"))),
    ("parameters: how many numbers.",),
)

WIDE = """\
         para-
recipe  meters  error
---------------------
tied     1,104    0.1
untied   2,128      -

parameters: how many
  numbers."""

NARROW = """\
         para-
recipe  meters
--------------
tied     1,104
untied   2,128

recipe  error
-------------
tied      0.1
untied      -

parameters: how
  many numbers."""


@pytest.mark.parametrize(("width", "text"), [(21, WIDE), (15, NARROW)])
def test_text(width, text):
    assert to_text(TABLE, width) == text


def test_a_block_holds_a_column_even_where_it_is_too_wide():
    assert [block.headers for block in fit(TABLE, 3)] == [("recipe", "para-\nmeters"), ("recipe", "error")]


def test_notes_stay_with_the_last_block():
    assert [block.notes for block in fit(TABLE, 15)] == [(), TABLE.notes]


def test_without_rows():
    assert to_text(Table(("a", "b"), ())) == "a  b\n----"


def test_ragged_row_is_an_error():
    with pytest.raises((ValueError, IndexError)):
        to_text(Table(("a", "b"), ((Cell("1"),),)))


@pytest.mark.parametrize(("width", "blocks"), [(21, 1), (20, 2)])
def test_the_gaps_count(width, blocks):
    assert len(fit(TABLE, width)) == blocks
