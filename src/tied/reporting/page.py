"""A self-contained HTML page: headings, sentences, tables, code and embedded pictures.

Owns: the markup and the style. Everything that comes from outside is escaped; nothing is loaded from
elsewhere. Must not write files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from tied.reporting.table import Cell, Table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th { text-align: right; vertical-align: bottom; font-weight: 600; white-space: pre-line; }
td { text-align: right; vertical-align: top; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.good { color: #1b6e3c; } td.bad { color: #a8321e; font-weight: 600; }
p.note { color: #666; font-size: .88rem; margin: .2rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f4; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; }
  body { color: #ddd; background: #1b1b1a; }
  th, td { border-color: #444; } td.good { color: #7fce9b; } td.bad { color: #f09a86; }
  p.note { color: #999; } pre { background: #262625; } img { background: #fff; }
}
"""


@dataclass(frozen=True)
class Heading:
    """A heading of the second level."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """One paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines of code or of a message, shown as they are."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG picture with the text that stands in for it."""

    png: bytes
    alternative: str


Part = Heading | Paragraph | Code | Picture | Table


def page(title: str, parts: Iterable[Part]) -> str:
    """Write a whole page.

    Example:
        >>> "<p>1 &lt; 2</p>" in page("Report", [Paragraph("1 < 2")])
        True
    """
    body = "\n".join(part_to_html(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def part_to_html(part: Part) -> str:
    """Write one part."""
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Picture(png, alternative):
            data = base64.b64encode(png).decode("ascii")
            return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
        case Table():
            return table_to_html(part)


def table_to_html(table: Table) -> str:
    r"""Write a table with its notes; the tone of a cell becomes its class.

    Example:
        >>> table_to_html(Table(("name",), ((Cell("a<b", "bad"),),))).split("\n")[1]
        '<tr><td class="bad">a&lt;b</td></tr>'
    """
    heads = "".join(f"<th{_aligned(table, index)}>{escape(head)}</th>" for index, head in enumerate(table.headers))
    rows = "\n".join(f"<tr>{_cells(table, row)}</tr>" for row in table.rows)
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f'<div class="wide"><table><tr>{heads}</tr>\n{rows}\n</table></div>\n{notes}'


def _cells(table: Table, row: tuple[Cell, ...]) -> str:
    return "".join(_cell(cell, _aligned(table, index)) for index, cell in enumerate(row))


def _aligned(table: Table, index: int) -> str:
    """Return the style of a column of words, in place, for a notebook has another sheet than the page."""
    return ' style="text-align: left; vertical-align: top"' if index < table.words and table.words > 1 else ""


def _cell(cell: Cell, style: str = "") -> str:
    kind = "" if cell.tone == "plain" else f' class="{cell.tone}"'
    return f"<td{kind}{style}>{escape(cell.text).replace(chr(10), '<br>')}</td>"
