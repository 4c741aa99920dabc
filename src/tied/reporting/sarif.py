"""A report of `tied.check` for machines: SARIF 2.1.0, and GitHub's workflow commands.

Owns: the two forms, and making text harmless. Must not look at models. Read next: `text.py` for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from tied.reporting.facts import Facts, Finding
from tied.reporting.rules import PAGE, RULES, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def harmless(text: str) -> str:
    r"""Show what a terminal would obey as an escape.

    Example:
        >>> harmless("weight\x1b[2J")
        'weight\\x1b[2J'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def to_sarif(report: Facts, uri: str = "") -> dict[str, Any]:
    """Write the findings in SARIF 2.1.0.

    Args:
        report: What was found.
        uri: The file that they are about, as code scanners show it; a model has none, and source code names its own.
    """
    rules = [RULES[code] for code in dict.fromkeys(finding.code for finding in report.findings)]
    driver = {"name": "tied", "rules": [_rule(rule) for rule in rules]}
    results = [_result(finding, report.subject, uri) for finding in report.findings]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.title,
        "shortDescription": {"text": rule.sentence},
        "help": {"text": f"{rule.sentence} See {PAGE}#{rule.section}."},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(finding: Finding, subject: str, uri: str) -> dict[str, Any]:
    of = finding.file or subject
    places = [{"fullyQualifiedName": f"{of}::{name}", "kind": "member"} for name in finding.names]
    location: dict[str, Any] = {"logicalLocations": places}
    if finding.file:
        region = {"region": {"startLine": finding.line}} if finding.line else {}
        location["physicalLocation"] = {"artifactLocation": {"uri": quote(Path(finding.file).as_posix())}} | region
    elif uri:
        location["physicalLocation"] = {"artifactLocation": {"uri": uri}}
    text = f"{finding.message}\nfix: {finding.fix}" if finding.fix else finding.message
    return {
        "ruleId": finding.code,
        "level": finding.severity,
        "message": {"text": text},
        "locations": [location],
    }


def to_github(report: Facts) -> str:
    """Write the findings as workflow commands, one a line, which GitHub shows beside the run."""
    return "\n".join(_command(finding, report.subject) for finding in report.findings)


def _command(finding: Finding, subject: str) -> str:
    title = f"{finding.code} {RULES[finding.code].title}"
    said = finding.message if finding.file else f"{subject}: {finding.message}"
    text = said + (f"\nfix: {finding.fix}" if finding.fix else "")
    where = (
        f"file={_property(finding.file)}," + (f"line={finding.line}," if finding.line else "") if finding.file else ""
    )
    return f"::{COMMANDS[finding.severity]} {where}title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
