"""`tied check` and `tied rules`: look at a model or a file, and explain what may be found.

Owns: finding the subject, the options and their defaults in pyproject.toml, and the exit status. Must not judge:
`tied.check` does. A model is made by importing and calling the user's own code, and that is said.

Exit status: 0 clean (notes are fine), 1 findings, 2 could not look, 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tied.cli.terminal import say

if TYPE_CHECKING:
    from tied.reporting.report import Report

FINDINGS, COULD_NOT_LOOK, INTERRUPTED = 1, 2, 130
FORMATS = ("text", "json", "sarif", "github", "html")
SUFFIXES = (".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt")


def check(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="package.module:factory, or a file.")],
    *,
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the factory; repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "",
    select: Annotated[str, typer.Option(metavar="CODES", help="Only these: TIE1,TIE402.")] = "",
    ignore: Annotated[str, typer.Option(metavar="CODES", help="Not these.")] = "",
    prove: Annotated[bool, typer.Option("--prove", help="Compare transposed copies in a file by elements.")] = False,
) -> None:
    """Look whether a model or a file shares what it seems to share.

    SUBJECT is a file (.safetensors, a sharded index, .pt, .pth, .bin, .ckpt), or package.module:factory, where the
    factory is a model, a class of models, or a function that returns a model, or a model and inputs for one forward.
    Importing it runs its code. Nothing is changed.

    Defaults of --format, --select and --ignore may stand in [tool.tied] of pyproject.toml.

    Exit status: 0 clean, 1 findings (errors or warnings), 2 could not look, 130 interrupted.
    """
    try:
        report = _report(subject, arg or [], _settings(form, select, ignore), prove=prove)
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    if not report.ok:
        raise typer.Exit(FINDINGS)


def _stop(problem: str) -> typer.Exit:
    say(f"tied check: {problem}")
    return typer.Exit(COULD_NOT_LOOK)


# -- options ------------------------------------------------------------------------------------------


def _settings(form: str, select: str, ignore: str) -> dict[str, Any]:
    """Return what was asked for, and for the rest what pyproject.toml says."""
    configured = _configured(Path("pyproject.toml"))
    settings = {
        "format": form or configured.get("format", "text"),
        "select": _codes(select) or configured.get("select"),
        "ignore": _codes(ignore) or configured.get("ignore", []),
    }
    if settings["format"] not in FORMATS:
        raise _stop(f"--format must be one of {', '.join(FORMATS)}, not {settings['format']!r}")
    for name in ("select", "ignore"):
        if not isinstance(settings[name], list | None):
            raise _stop(f"[tool.tied] {name} must be a list of codes, not {settings[name]!r}")
    return settings


def _codes(text: str) -> list[str]:
    return [code.strip() for code in text.split(",") if code.strip()]


def _configured(path: Path) -> dict[str, Any]:
    """Read [tool.tied]; unknown names in it are an error, so that a misspelled one is seen."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    if "[tool.tied]" not in text:
        return {}
    try:
        found = importlib.import_module("tomllib").loads(text)["tool"]["tied"]
    except ModuleNotFoundError:
        raise _stop("reading [tool.tied] needs Python 3.11 or newer; give the options by hand") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _stop(f"{path}: {error}") from None
    unknown = sorted(set(found) - {"format", "select", "ignore"})
    if unknown:
        raise _stop(f"[tool.tied] has no '{unknown[0]}'; it knows format, select and ignore")
    return found


def _arguments(given: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise _stop(f"--arg must be name=value, not {text!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


# -- the subject --------------------------------------------------------------------------------------


def _report(subject: str, given: list[str], settings: dict[str, Any], *, prove: bool) -> Report:
    is_file = Path(subject).exists() or subject.endswith(SUFFIXES)
    if not is_file and ":" not in subject:
        raise _stop(f"{subject!r} is no file, and not of the form package.module:factory")
    if is_file and given:
        raise _stop("--arg is for a factory, and a file has none")
    if prove and not is_file:
        raise _stop("--prove is for files; of a model all values are compared")
    arguments = _arguments(given)
    from tied.errors import TieError
    from tied.reporting.rules import known_prefixes

    chosen = {"select": settings["select"], "ignore": settings["ignore"]}
    try:
        known_prefixes([*(chosen["select"] or ()), *chosen["ignore"]])  # before the user's code runs
        if is_file:
            from tied.files.auditing.audit import audit

            report = audit(subject, prove=prove, **chosen)
        else:
            from tied.checking.check import check as look

            report = look(*_made(subject, arguments), **chosen)
    except (TieError, OSError) as error:
        raise _stop(str(error)) from None
    _print(report, settings["format"], subject if is_file else "")
    return report


def _made(subject: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Import the user's code and make the model."""
    from torch import nn

    name, _, path = subject.partition(":")
    say(f"Importing {name}, which runs its code ...")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
        made = found if isinstance(found, nn.Module) else found(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise _stop(f"{subject} raised {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise _stop(f"{subject} gave {type(model).__name__}, where a model, or a model and inputs, is needed")
    return model, inputs


def _print(report: Report, form: str, uri: str) -> None:
    from tied.reporting import text as show

    if form == "json":
        print(json.dumps(report.to_json(), indent=2))
    elif form == "sarif":
        print(json.dumps(show.to_sarif(report, uri), indent=2))
    else:
        text = {"text": show.to_text, "github": show.to_github, "html": show.to_html}[form](report)
        print(text, end="" if text.endswith("\n") or not text else "\n")


# -- the rules ------------------------------------------------------------------------------------------


def rules(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A rule, such as TIE101, or a beginning: TIE1.")] = "",
) -> None:
    """List the rules of `tied check`, or explain one."""
    from tied.reporting.rules import PAGE, RULES

    rule, some = RULES.get(code.upper()), [r for r in RULES.values() if r.code.startswith(code.upper())]
    if not some:
        say(f"tied rules: there is no {code}; `tied rules` lists all")
        raise typer.Exit(COULD_NOT_LOOK)
    if rule is None:
        width = max(len(one.title) for one in some)
        for one in some:
            print(f"{one.code}  {one.severity:7}  {one.title:{width}}  {one.sentence}")
        return
    print(f"{rule.code} {rule.title} ({rule.severity})\n\n{rule.sentence}\n\n{PAGE}#{rule.section}")
