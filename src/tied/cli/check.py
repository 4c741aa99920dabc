"""`tied check` and `tied rules`: look at models, files and source code, and explain what may be found.

Owns: the options and their defaults in pyproject.toml, and the exit status. Must not judge: `tied.check` does.
Read next: `subject.py`.

Exit status: 0 clean (notes are fine), 1 findings, 2 could not look, 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tied.cli.terminal import Line, say, show_lines, show_reports
from tied.cli.wording import said

if TYPE_CHECKING:
    from tied.cli.subject import Factory
    from tied.reporting.report import Report
    from tied.reporting.rules import Rule

FINDINGS, COULD_NOT_LOOK, INTERRUPTED = 1, 2, 130
FORMATS = ("text", "json", "sarif", "github", "html")


def check(
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="SUBJECT...", help="Files and folders, package.module:factory, or model.py:factory."),
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
    index, .pt, .pth, .bin, .ckpt); or package.module:factory or model.py:factory, where the factory is a model, a
    class of models, or a function that returns a model, or a model and inputs for one forward. Importing that runs
    its code; package.module and "model.py:" list what there is. Nothing is changed, and nothing is downloaded.

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
        where = "--format" if form else "[tool.tied] format"
        raise _stop(f"{where} must be one of {', '.join(FORMATS)}, not {settings['format']!r}")
    for name, typed in (("select", select), ("ignore", ignore)):
        _refuse_unknown(f"--{name}" if _codes(typed) else f"[tool.tied] {name}", settings[name])
    return settings


def _refuse_unknown(where: str, codes: object) -> None:
    """Refuse what is no list of codes of rules, or of their beginnings."""
    from tied.errors import KindError
    from tied.reporting.rules import known_prefixes

    if codes is None:
        return
    known = [code for code in codes if isinstance(code, str)] if isinstance(codes, list) else None
    if known is None or known != codes:
        raise _stop(f"{where} must be a list of codes, not {codes!r}")
    try:
        known_prefixes(known)
    except KindError as error:
        raise _stop(f"{where}: {error.problem} `tied rules` lists the codes.") from None


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


# -- looking ------------------------------------------------------------------------------------------


def _reports(
    subjects: list[str], given: list[str], settings: dict[str, Any], *, prove: bool
) -> list[tuple[Report, str]]:
    """Look at every subject; return each report with the file that it is about. Python files share one report."""
    from tied.checking.paths import is_source_file
    from tied.cli.subject import SubjectError
    from tied.errors import TieError

    chosen = {"select": settings["select"], "ignore": settings["ignore"]}
    try:
        found = _found(subjects, given, settings["format"], prove=prove)
        arguments = _arguments(given)
        source = [str(one) for one in found if isinstance(one, Path) and is_source_file(one)]
        others = [one for one in found if not isinstance(one, Path) or not is_source_file(one)]
        reports = [(_of_source(source, chosen), "")] if source else []
        return reports + [_report(one, arguments, chosen, prove=prove) for one in others]
    except TieError as error:
        raise _stop(said(error, state="")) from None
    except SubjectError as error:
        raise _stop(str(error)) from None
    except OSError as error:
        raise _stop(f"{error.strerror or error}: {str(error.filename or '')!r}") from None


def _found(subjects: list[str], given: list[str], form: str, *, prove: bool) -> list[Path | Factory]:
    """Find every subject, and refuse what does not go with it, before anything of the user's runs."""
    from tied.cli.near_names import exists, no_such_file
    from tied.cli.subject import subject_of

    found = [subject_of(text) for text in subjects]
    for one in found:
        is_file = isinstance(one, Path)
        if is_file and given:
            raise _stop("--arg is for a factory, and a file has none")
        if prove and not is_file:
            raise _stop("--prove is for files; of a model all values are compared")
        if is_file and not exists(one) and (len(found) == 1 or one.suffix != ".py"):  # of several, others are looked at
            raise _stop(no_such_file(one))
    if form == "html" and len(subjects) > 1:
        raise _stop("--format html is a page for one subject")
    return found


def _of_source(paths: list[str], chosen: dict[str, Any]) -> Report:
    """Look at Python files; one alone that cannot be read is an error, one of several a finding."""
    from tied.checking.paths import look_at_path
    from tied.checking.source.look import look_at_source

    return look_at_path(paths[0], **chosen) if len(paths) == 1 else look_at_source(*paths, **chosen)


def _report(
    subject: Path | Factory, arguments: dict[str, Any], chosen: dict[str, Any], *, prove: bool
) -> tuple[Report, str]:
    if isinstance(subject, Path):
        from tied.checking.paths import look_at_path

        return look_at_path(subject, prove=prove, **chosen), str(subject)
    from tied.checking.check import check as look
    from tied.cli.subject import made

    return look(*made(subject, arguments), **chosen), ""


def _print(reports: list[tuple[Report, str]], form: str) -> None:
    from tied.reporting import text as show

    if form == "json":
        data = [report.to_json() for report, _ in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    elif form == "sarif":
        logs = [show.to_sarif(report, uri) for report, uri in reports]
        runs = [run for log in logs for run in log["runs"]]
        print(json.dumps(logs[0] | {"runs": runs}, indent=2))
    elif form == "text":
        show_reports(report for report, _ in reports)
    else:
        to = {"github": show.to_github, "html": show.to_html}[form]
        text = "\n".join(filter(None, (to(report) for report, _ in reports)))
        print(text, end="" if text.endswith("\n") or not text else "\n")


# -- the rules ------------------------------------------------------------------------------------------


def rules(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A rule, such as TIE101, or a beginning: TIE1.")] = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rules as JSON only.")] = False,
) -> None:
    """List the rules of `tied check`; of one say why it matters, with an example and the fix."""
    from tied.reporting.rules import RULES

    wanted = code.upper() if not code.isdigit() else f"TIE{code}"
    some = [rule for rule in RULES.values() if rule.code.startswith(wanted)]
    if not some:
        say(f"tied rules: there is no {code}; `tied rules` lists all")
        raise typer.Exit(COULD_NOT_LOOK)
    if as_json:
        print(json.dumps([_rule_as_json(rule) for rule in some], indent=2))
    elif wanted in RULES:
        show_lines(_explained(some[0]), wrapped=True)
    else:
        width = max(len(one.title) for one in some)
        begins = [f"{one.code}  {one.severity:7}  {one.title:{width}}  " for one in some]
        show_lines(Line(b + one.sentence, one.severity, len(b)) for b, one in zip(begins, some, strict=True))


def _rule_as_json(rule: Rule) -> dict[str, str]:
    from tied.reporting.explanations import Explanation

    return vars(rule) | vars(Explanation.of(rule))


def _explained(rule: Rule) -> Iterator[Line]:
    """Yield the section of a rule: code as it stands, sentences to be wrapped."""
    from tied.reporting.explanations import Explanation

    explained = Explanation.of(rule)
    yield Line(f"{rule.code} {rule.title} ({rule.severity})", rule.severity)
    for text in ("", explained.why, "", "Example:"):
        yield Line(text, indent=0)
    yield from (Line(f"    {line}".rstrip()) for line in explained.example.splitlines())
    for text in ("", f"Fix: {explained.fix}", "", f"Read on: {explained.page}"):
        yield Line(text, indent=0)
