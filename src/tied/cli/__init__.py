"""The command `tied`: one file per group of commands, the only code that prints.

Owns: the list of commands. Must not import torch here: `tied --help` answers at once. A command imports
what it needs when it runs.

Exit status: 0 fine, 1 findings, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from tied.cli.check import check, rules
from tied.cli.demo import demo
from tied.cli.files import expand, repair, shrink
from tied.cli.matrix import matrix
from tied.cli.proofs import proofs
from tied.cli.train import train

app = typer.Typer(
    help="Parameter sharing (weight tying) for PyTorch: declare it, keep it, check it, save it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(check)
app.command()(rules)
app.command()(shrink)
app.command()(expand)
app.command()(repair)
app.command()(demo)
app.command()(matrix)
app.command()(proofs)
app.add_typer(train, name="train")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tied {_installed_version()}")
        raise typer.Exit


def _installed_version() -> str:
    try:
        return metadata.version("tied")
    except metadata.PackageNotFoundError:
        return "(not installed, running from its source)"


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Stand before every command."""


def main() -> None:
    """Run the command line; the entry point of `tied` and of `python -m tied`."""
    app(prog_name="tied")
