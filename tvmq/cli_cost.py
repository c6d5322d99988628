"""The cost command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

import tvmq
from tvmq import report
from tvmq.cli_compile import Data, calibration_warnings, check_paths, opened_model
from tvmq.cli_output import StageDisplay, show
from tvmq.images import load_calibration, preprocessing_from_text

if TYPE_CHECKING:
    from tvmq.costing import Costs


def cost_model(path: Path, data: Data, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Show what the sites of the model at path cost; options go to tvmq.costs."""
    check_paths(path, None)
    preprocessing = preprocessing_from_text(data.mean, data.std)
    with StageDisplay() as display, calibration_warnings(display):
        display("start", 0, 1)  # seconds, for the compiler's packages
        opened = opened_model(path, data.batch, display)
        batches = load_calibration(data.path, opened.inputs, preprocessing=preprocessing, limit=data.samples)
        found: Costs = tvmq.costs(
            opened.model,
            example_inputs=opened.examples(),
            calibration=batches,
            progress=display,
            **options,
        )
    show(found.to_json(), *tables(found), as_json=as_json)
    return 0


def tables(found: Costs) -> list[RenderableType]:
    """Return the costs for people: one line for each site, and the sums."""
    table = found.table
    names = list(dict.fromkeys(cost.precision for cost in table.sites))
    names.sort(key=lambda name: (name != "float", name), reverse=False)
    sites = list(dict.fromkeys(cost.site for cost in table.sites))
    by_site = {site: [table.of.get((site, name)) for name in names] for site in sites}
    rows: list[Sequence[object]] = []
    for site in sorted(sites, key=lambda site: -max(c.ms for c in by_site[site] if c)):
        costs = by_site[site]
        times = [f"{cost.ms:.4f}" if cost else "" for cost in costs]
        sizes = [f"{cost.weight_bytes / 1e3:.1f}" if cost else "" for cost in costs]
        sources = ", ".join(dict.fromkeys(cost.source for cost in costs if cost))
        rows.append([site, *times, *sizes, sources])
    columns = ["site", *(f"{name} ms" for name in names), *(f"{name} kB" for name in names), "known from"]
    where = f"on {table.device}" if table.device else f"estimated for {table.target}"
    threads = "1 thread" if table.threads == 1 else f"{table.threads} threads"
    lines = [f"Costs {where}, {threads}; between sites and besides: {table.fixed_ms:.4f} ms."]
    for name in names:
        chosen = {site: name if (site, name) in table.of else _fallback(by_site[site]) for site in sites}
        lines.append(f"All that can be in {name}: {table.ms(chosen):.3f} ms.")
    if found.held_out is not None:
        lines.append(f"From this store, {found.held_out}.")
    return [report.comparison("Costs", columns, rows), *map(Text, lines)]


def _fallback(costs: Sequence[Any]) -> str:
    """Return the widest integers that a site has, else float."""
    names = [cost.precision for cost in costs if cost]
    return str(max((name for name in names if name != "float"), default="float"))
