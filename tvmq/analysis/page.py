"""An analysis as one page of HTML, by the template beside this file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from tvmq.analysis import charts
from tvmq.analysis.plan_pictures import drawing
from tvmq.analysis.records import Analysis, SiteError
from tvmq.analysis.terminal import ADVISED, style
from tvmq.new_file import write_atomically
from tvmq.plan.records import PlanReport

TEMPLATE = "page.html.j2"


def save(found: Analysis, path: str | Path, plan: PlanReport | None = None) -> None:
    """Write the page; a file that was there is replaced only by a whole one."""
    text = render(found, plan).encode("utf-8")

    def write(file: IO[bytes]) -> None:
        file.write(text)

    write_atomically(Path(path), write)


def render(found: Analysis, plan: PlanReport | None = None) -> str:
    """Return the page: style, plots and numbers in one text, and nothing to load."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "share": share, "decibel": decibel}
    template = environment.from_string(files("tvmq.analysis").joinpath(TEMPLATE).read_text("utf-8"))
    sites = found.worst_first
    return template.render(
        found=found,
        sites=[(site, _plots(site)) for site in sites],
        advised=[site for site in sites[:ADVISED] if site.advice],
        ids={site.site: f"site-{index}" for index, site in enumerate(found.sites)},
        overview=charts.overview(found.sites),
        size=(charts.WIDTH, charts.HEIGHT, charts.OVERVIEW_HEIGHT),
        full=charts.FULL_DB,
        style=style,
        plan="" if plan is None else drawing(plan).svg(),
    )


def number(value: float) -> str:
    """Return a number of any size with three digits."""
    return f"{value:.3g}"


def share(value: float) -> str:
    """Return 0.0123 as "1.2 %"."""
    return f"{100 * value:.2g} %"


def decibel(value: float | None) -> str:
    """Return a decibel value with one digit, a dash for none."""
    return "-" if value is None else f"{value:.1f}"


def _plots(site: SiteError) -> dict[str, Any]:
    return {
        "spreads": [
            (title, spread, charts.histogram(spread))
            for title, spread in (("What it reads", site.reads), ("What it gives", site.gives))
            if spread is not None
        ],
        "channels": charts.channels(site),
    }
