"""`tied check` and `tied rules`: look at models, files and source code, and explain what may be found.

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
SUFFIXES = (".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt", ".py")


def check(
    subjects: Annotated[
        list[str], typer.Argument(metavar="SUBJECT...", help="package.module:factory, or files and folders.")
    ],
    *,
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the factory; repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "",
    select: Annotated[str, typer.Option(metavar="CODES", help="Only these: TIE1,TIE402.")] = "",
    ignore: Annotated[str, typer.Option(metavar="CODES", help="Not these.")] = "",
    prove: Annotated[bool, typer.Option("--prove", help="Compare transposed copies in a file by elements.")] = False,
) -> None:
    """Look whether models, checkpoints and source code share what they seem to share.

    SUBJECT is Python source code (.py, or a folder), which is read and not run; a checkpoint (.safetensors, a sharded
    index, .pt, .pth, .bin, .ckpt); or package.module:factory, where the factory is a model, a class of models, or a
    function that returns a model, or a model and inputs for one forward. Importing that runs its code. Nothing is
    changed.

    Defaults of --format, --select and --ignore may stand in [tool.tied] of pyproject.toml.

    Exit status: 0 clean, 1 findings (errors or warnings), 2 could not look, 130 interrupted.
    """
    try:
        settings = _settings(form, select, ignore)
        reports = _reports(subjects, arg or [], settings, prove=prove)
        _print(reports, settings["format"])
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    status = _status([report for report, _ in reports])
    if status:
        raise typer.Exit(status)


def _status(reports: list[Report]) -> int:
    """Return the exit status: findings weigh more than what could not be looked at."""
    from tied.reporting.rules import NOT_LOOKED_AT

    serious = {one.code for report in reports for one in report.findings if one.severity != "note"}
    return 0 if not serious else COULD_NOT_LOOK if serious == {NOT_LOOKED_AT} else FINDINGS


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


def _reports(
    subjects: list[str], given: list[str], settings: dict[str, Any], *, prove: bool
) -> list[tuple[Report, str]]:
    """Look at every subject; return each report with the file that it is about. Python files share one report."""
    for subject in subjects:
        _refuse_misuse(subject, given, prove=prove)
    if settings["format"] == "html" and len(subjects) > 1:
        raise _stop("--format html is a page for one subject")
    arguments = _arguments(given)
    from tied.checking.paths import is_source_file
    from tied.errors import TieError
    from tied.reporting.rules import known_prefixes

    chosen = {"select": settings["select"], "ignore": settings["ignore"]}
    source = [subject for subject in subjects if is_source_file(subject)]
    others = [subject for subject in subjects if not is_source_file(subject)]
    try:
        known_prefixes([*(chosen["select"] or ()), *chosen["ignore"]])  # before the user's code runs
        reports = [(_of_source(source, chosen), "")] if source else []
        return reports + [_report(subject, arguments, chosen, prove=prove) for subject in others]
    except (TieError, OSError) as error:
        raise _stop(str(error)) from None


def _refuse_misuse(subject: str, given: list[str], *, prove: bool) -> None:
    is_file = Path(subject).exists() or subject.endswith(SUFFIXES)
    if not is_file and ":" not in subject:
        raise _stop(f"{subject!r} is no file, and not of the form package.module:factory")
    if is_file and given:
        raise _stop("--arg is for a factory, and a file has none")
    if prove and not is_file:
        raise _stop("--prove is for files; of a model all values are compared")


def _of_source(paths: list[str], chosen: dict[str, Any]) -> Report:
    """Look at Python files; one alone that cannot be read is an error, one of several a finding."""
    from tied.checking.paths import look_at_path
    from tied.checking.source.look import look_at_source

    return look_at_path(paths[0], **chosen) if len(paths) == 1 else look_at_source(*paths, **chosen)


def _report(subject: str, arguments: dict[str, Any], chosen: dict[str, Any], *, prove: bool) -> tuple[Report, str]:
    if Path(subject).exists() or subject.endswith(SUFFIXES):
        from tied.checking.paths import look_at_path

        return look_at_path(subject, prove=prove, **chosen), subject
    from tied.checking.check import check as look

    return look(*_made(subject, arguments), **chosen), ""


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


def _print(reports: list[tuple[Report, str]], form: str) -> None:
    from tied.reporting import text as show

    if form == "json":
        data = [report.to_json() for report, _ in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    elif form == "sarif":
        logs = [show.to_sarif(report, uri) for report, uri in reports]
        runs = [run for log in logs for run in log["runs"]]
        print(json.dumps(logs[0] | {"runs": runs}, indent=2))
    else:
        to = {"text": show.to_text, "github": show.to_github, "html": show.to_html}[form]
        text = ("\n\n" if form == "text" else "\n").join(filter(None, (to(report) for report, _ in reports)))
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
