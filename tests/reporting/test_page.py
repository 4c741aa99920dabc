"""HTML: escaped, self-contained, well-formed."""

from html.parser import HTMLParser

from tied.reporting.page import Code, Heading, Paragraph, Picture, page
from tied.reporting.table import Cell, Table

HOSTILE = '<script>alert("1")</script>&'
VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Follows opening and closing tags."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text: str) -> Balance:
    balance = Balance()
    balance.feed(text)
    assert not balance.open
    return balance


def test_everything_from_outside_is_escaped():
    table = Table((HOSTILE,), ((Cell(HOSTILE, "bad"),),), (HOSTILE,))
    parts = [Heading(HOSTILE), Paragraph(HOSTILE), Code(HOSTILE), Picture(b"\x89PNG", HOSTILE), table]
    found = parsed(page(HOSTILE, parts))
    assert "script" not in [tag for tag, _ in found.seen]
    assert found.text.count(HOSTILE) == 8
    assert ("td", {"class": "bad"}) in found.seen


def test_pictures_are_embedded():
    found = parsed(page("Report", [Picture(b"\x89PNG", "a plot")]))
    [picture] = [attributes for tag, attributes in found.seen if tag == "img"]
    assert picture == {"alt": "a plot", "src": "data:image/png;base64,iVBORw=="}
