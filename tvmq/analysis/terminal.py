"""An analysis for a terminal: bars, the worst site first, and what would help below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvmq.analysis.records import Analysis, SiteError
from tvmq.report import bar, facts

BAD_DB, FAIR_DB = 20.0, 30.0  # a hundredth and a thousandth of the power is error
FULL_DB = 60.0  # what fills a bar
WORST = 20  # sites that are shown
ADVISED = 10  # of which what would help is told


def bars(found: Analysis, most: int = WORST) -> RenderableType:
    """Return the worst sites, what would help them, and how near the outputs are."""
    sites = found.worst_first
    table = Table(title="SQNR of each site's output, the worst first", title_justify="left")
    table.add_column("site", overflow="fold")
    table.add_column("kind")
    table.add_column("alone dB", justify="right")
    table.add_column("")
    table.add_column("weights", justify="right")
    table.add_column("inputs", justify="right")
    table.add_column("with all before", justify="right")
    table.add_column("cosine", justify="right")
    for site in sites[:most]:
        table.add_row(*_cells(site))
    shown: list[RenderableType] = [table]
    if len(sites) > most:
        shown.append(Text(f"{len(sites) - most} other sites are better; --html and --json have them all."))
    return Group(*shown, *_advice(sites[:ADVISED]), outputs(found))


def outputs(found: Analysis) -> RenderableType:
    """Return how near the model's outputs are to float."""
    where = "held-out samples" if found.held_out else "of the calibration samples"
    rows = {
        each.name: f"SQNR {each.closeness.sqnr_db:.1f} dB, cosine {each.closeness.cosine:.6f}"
        for each in found.outputs
    }
    return facts("Outputs", {**rows, "measured on": f"{found.samples} {where}"})


def style(decibel: float) -> str:
    """Return the colour of an SQNR."""
    return "red" if decibel < BAD_DB else "yellow" if decibel < FAIR_DB else "green"


def _cells(site: SiteError) -> Iterator[Text]:
    yield Text(site.site)
    yield Text(site.kind)
    if site.alone is None:
        yield Text("float")
        yield Text("")
    else:
        alone = site.alone.sqnr_db
        yield Text(f"{alone:.1f}")
        yield Text(bar(alone / FULL_DB), style(alone))
    for decibel in (site.weights_db, site.inputs_db):
        yield Text("" if decibel is None else f"{decibel:.1f}")
    yield Text(f"{site.together.sqnr_db:.1f}", style(site.together.sqnr_db))
    yield Text(f"{site.together.cosine:.5f}")


def _advice(sites: Sequence[SiteError]) -> Iterator[RenderableType]:
    told = [site for site in sites if site.advice]
    if told:
        table = Table("site", "what would help", title="What would help", title_justify="left")
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        for site in told:
            table.add_row(Text(site.site), Text(site.advice))
        yield table
