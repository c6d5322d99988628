"""The terminal shows the worst sites, and says how many others there are."""

from __future__ import annotations

import io

from rich.console import Console

from tests.analysis.nets import transformer
from tvmq.analysis.terminal import bars, style


def test_the_worst_sites_come_first_with_bars_and_the_outputs_last():
    found = transformer()
    console = Console(file=io.StringIO(), width=140)
    console.print(bars(found, most=3))
    text = console.file.getvalue()
    places = [text.index(f" {site.site} ") for site in found.worst_first[:3]]
    assert places == sorted(places)
    assert f"{len(found.sites) - 3} other sites are better" in text
    assert "█" in text
    assert "3 held-out samples" in text


def test_colours_follow_the_decibels():
    assert [style(decibel) for decibel in (10.0, 25.0, 40.0)] == ["red", "yellow", "green"]
