"""Tables and progress on a terminal and without one."""

import io
import re

import pytest
from rich.console import Console

from tied.cli import terminal
from tied.cli.terminal import Lines, Screen, show_table
from tied.reporting.table import Cell, Table, to_text
from tied.study.progress import Progress

TABLE = Table(
    ("recipe", "error"), ((Cell("tied"), Cell("0.1", "good")), (Cell("hook"), Cell("0.9", "bad"))), ("Note.",)
)


def console(width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system="standard")


def test_without_a_terminal_the_table_is_plain(capsys):
    show_table(TABLE)
    assert capsys.readouterr().out == to_text(TABLE) + "\n"


def test_on_a_terminal_tones_are_colors_and_the_words_stay(monkeypatch):
    screen = console()
    monkeypatch.setattr(terminal, "Console", lambda **_: screen)
    show_table(TABLE)
    printed = screen.file.getvalue()
    assert re.search(r"\x1b\[32m +0\.1", printed)
    assert re.search(r"\x1b\[1;31m +0\.9", printed)
    assert "Note." in printed


def test_no_color_is_no_bold_type_either(monkeypatch):
    file = io.StringIO()
    made = Console
    monkeypatch.setattr(
        terminal, "Console", lambda *, stderr, **options: made(file=file, force_terminal=True, **options)
    )
    monkeypatch.setenv("TERM", "xterm")
    show_table(TABLE)
    assert "\x1b[1m" in file.getvalue()
    file.truncate(file.seek(0))
    monkeypatch.setenv("NO_COLOR", "1")
    show_table(TABLE)
    assert "recipe" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_on_a_narrow_terminal_no_line_is_longer(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=12, color_system=None)
    monkeypatch.setattr(terminal, "Console", lambda **_: screen)
    wide = Table(("recipe", "first", "second"), ((Cell("tied"), Cell("11111"), Cell("22222")),))
    show_table(wide)
    lines = screen.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 12
    assert "22222" in screen.file.getvalue()


def test_lines_print_milestones_only(capsys):
    with Lines() as watch:
        watch.update(Progress("training", 0, 2, "epoch 1", milestone=False), TABLE)
        watch.update(Progress("training", 1, 2, "tied"), TABLE)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "training 1 of 2: tied\n")


def test_screen_shows_the_table_and_the_bars_and_goes_away():
    shown = console(width=80)
    with Screen(shown) as watch:
        watch.update(Progress("checking", 1, 2, "tied"), TABLE)
        watch.update(Progress("training", 0, 2, "epoch 7", milestone=False), TABLE)
        watch._live.refresh()
        during = shown.file.getvalue()
    for words in ("recipe", "checking", "1/2", "training", "0/2", "epoch 7"):
        assert words in during
    assert shown.file.getvalue().endswith("\x1b[2K") or "\x1b[1A" in shown.file.getvalue()


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, Screen), (False, Lines)])
def test_the_display_fits_the_terminal(monkeypatch, is_terminal, kind):
    made = Console(file=io.StringIO(), force_terminal=is_terminal)
    monkeypatch.setattr(terminal, "Console", lambda **_: made)
    assert isinstance(terminal.watching(), kind)
