"""Why a rule matters, an example, and the fix: the sections of docs/rules.md, which the wheel carries along.

Owns: finding the page, and taking a section apart. Must not look at anything. Read next: `rules.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tied.reporting.rules import PAGE, Rule

PACKED = "rules.md"  # the name that the page has in a wheel; pyproject.toml puts it there

ASSERTED_LINE = re.compile(r'^assert source_codes\((?:forward=\[)?"(.*)"\]?\) == \[(.*)\]$', re.M)
ASSERTED_SUBJECT = re.compile(r"^assert codes\((.*)\) == \[(.*)\]$", re.M)


@dataclass(frozen=True)
class Explanation:
    """What the page says of one rule.

    Attributes:
        why: A paragraph.
        example: The smallest code that triggers it.
        fix: The way out.
        page: Where to read on.
    """

    why: str
    example: str
    fix: str
    page: str

    @classmethod
    def of(cls, rule: Rule) -> Explanation:
        """Take the section of a rule apart."""
        section = _sections()[f"{rule.code} {rule.title}"]
        code = re.search(r"^```python\n(.*?)^```$", section, re.S | re.M)
        why, _, fix = section.partition("\n*Fix.* ")
        why = why.partition("```")[0]
        return cls(_plain(why), _readable(code[1] if code else ""), _plain(fix), f"{PAGE}#{rule.section}")


@cache
def _sections() -> dict[str, str]:
    """Return the text below each heading of a rule."""
    packed = resources.files("tied.reporting") / PACKED
    page = packed if packed.is_file() else Path(__file__).parents[3] / PAGE  # a checkout has it in its place only
    parts = re.split(r"^##+ (.*)\n", page.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _plain(text: str) -> str:
    """Return one paragraph without links, emphasis and the severity, which is known."""
    text = re.sub(r"\*(?:Error|Warning|Note)\.\*\s", "", text.strip(), count=1)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"(?<![\w*])\*(\w[^*`]*)\*(?!\w)", r"\1", text).split())


def _readable(code: str) -> str:
    """Write what the page asserts, so that the page is a test, as a line with what comes of it."""
    for asserted, line in ((ASSERTED_LINE, "{}"), (ASSERTED_SUBJECT, "tied.check({})")):
        code = asserted.sub(lambda found, line=line: _said(line.format(found[1]), found[2]), code)
    return code.strip()


def _said(line: str, codes: str) -> str:
    return f"{line}  # {codes.replace(chr(34), '') or 'no finding'}"
