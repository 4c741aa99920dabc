"""Golden texts: a report or message is compared, whole, with a file of `tests/golden/`.

    def test_report(golden):
        golden("check-autoencoder.txt", str(tied.check(model)))

`pytest --update-golden` writes the files anew and lists those that changed; read the difference before
you commit it. In CI the flag is refused: there, nobody would read.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"
REWRITTEN = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden is refused in CI: run it where somebody reads the difference")
    config.stash[REWRITTEN] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name in config.stash[REWRITTEN]:
        terminalreporter.write_line(f"golden text rewritten: {name}")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `compare(name, text)`: fails where `text` differs from `tests/golden/name`."""
    update = request.config.getoption("--update-golden")

    def compare(name: str, text: str) -> None:
        path = FOLDER / name
        known = path.read_text(encoding="utf-8") if path.exists() else None
        if update and text != known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            request.config.stash[REWRITTEN].append(name)
        elif known is None:
            pytest.fail(f"there is no tests/golden/{name}: write it with `pytest --update-golden`")
        else:
            assert text == known, f"differs from tests/golden/{name}; if wanted, run `pytest --update-golden`"

    return compare
