"""The page stands alone, is whole, and shows every site."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from tests.analysis.nets import transformer
from tvmq.analysis.page import render


class Page(HTMLParser):
    """Collects what a page would load, and its text; open tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        assert tag not in ("script", "link", "img", "iframe", "object")
        if tag not in ("meta", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_names_every_site(tmp_path: Path):
    text = render(transformer())
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#site-") for link in page.loads)
    assert "http" not in text
    assert "url(" not in text
    assert all(each.site in page.text for each in transformer().sites)
    assert len(text.encode()) < 16_000 * len(transformer().sites)
    transformer().save_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
