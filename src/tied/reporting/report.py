"""The report: what `tied.check` returns.

Owns: the class, which shows its facts as text, HTML, JSON and SARIF. Must not look at models or files.
Read next: `text.py`, `sarif.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tied.reporting.facts import Facts
from tied.reporting.sarif import to_sarif
from tied.reporting.text import to_fragment, to_html, to_text


@dataclass(frozen=True)
class Report(Facts):
    """What `tied.check` saw: its `Facts`, as text (`str()`), HTML (in a notebook, too), JSON and SARIF."""

    __module__ = "tied"

    def __str__(self) -> str:
        """Return the report as text."""
        return to_text(self)

    def to_sarif(self) -> dict[str, Any]:
        """Return the findings in SARIF 2.1.0, for code scanners."""
        return to_sarif(self)

    def to_html(self) -> str:
        """Return a page that stands alone."""
        return to_html(self)

    def _repr_html_(self) -> str:
        return to_fragment(self)
