"""What an automatic plan was chosen from, as a drawing, a page, and tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvmq.analysis.drawing import FAINT, Bar, Dot, Drawing, Label, Line
from tvmq.new_file import write_atomically
from tvmq.plan.cost_table import FLOAT, precision_of
from tvmq.plan.problem import Limits
from tvmq.plan.records import GroupChoice, PlanReport
from tvmq.plan.search import Evaluated
from tvmq.report import bar, facts

WIDTH, CURVE, ROW = 860.0, 260.0, 15.0  # of the drawing, of the curve's height, of a group's row
LEFT, TOP, BOTTOM = 60.0, 26.0, 40.0
NAMES, BARS = 230.0, 260.0  # where bars begin, and how long the longest is
COLOURS = {8: "#3b6ea5", 6: "#4f9d9d", 5: "#4f9d9d", 4: "#e0a030", 3: "#d97b29", 2: "#c8452f"}
FLOAT_COLOUR, CHOSEN, OTHER = "#8a8a8a", "#c8452f", "#9db4cc"
LOSS_DECADES = 4.0  # below the largest loss, what the bars of losses show
MOST = 40  # groups that a terminal shows


def colour_of(precision: str) -> str:
    """Return the colour of a precision: by the bits of weights."""
    known = precision_of(precision)
    return FLOAT_COLOUR if known is None else COLOURS.get(known.weight_bits, COLOURS[8])


def drawing(report: PlanReport) -> Drawing:
    """Return the curve of what was evaluated above the bars of all groups."""
    top = TOP + CURVE + BOTTOM if report.evaluated else 0.0
    sheet = Drawing(WIDTH, top + TOP + ROW * (len(report.groups) + 1) + 8)
    if report.evaluated:
        _curve(sheet, report)
    _bars(sheet, report.groups, top + TOP)
    return sheet


def draw_plan(report: PlanReport, path: str | Path) -> None:
    """Write the drawing as .png, .svg or as an .html page of its own."""
    where = Path(path)
    if where.suffix != ".html":
        drawing(report).save(where)
        return
    page = f"<!doctype html><meta charset=utf-8><title>tvmq: bits by site</title>{drawing(report).svg()}"

    def write(file: IO[bytes]) -> None:
        file.write(page.encode("utf-8"))

    write_atomically(where, write)


def _curve(sheet: Drawing, report: PlanReport) -> None:
    found = report.evaluated
    across = _scale([e.plan.ms for e in found], LEFT, WIDTH - 20)
    metrics = [e.metric for e in found] + ([report.float_metric] if report.float_metric is not None else [])
    down = _scale(metrics, TOP + CURVE, TOP)
    sheet.shapes.append(Label(LEFT, 12, f"{report.metric}, by predicted milliseconds of one call"))
    for value in (min(metrics), max(metrics)):
        sheet.shapes.append(Line(((LEFT, down(value)), (WIDTH - 20, down(value)))))
        sheet.shapes.append(Label(LEFT - 6, down(value), f"{value:.4g}", end=True))
    times = [e.plan.ms for e in found]
    for ms, end in ((min(times), False), (max(times), True)):
        sheet.shapes.append(Label(across(ms), TOP + CURVE + 18, f"{ms:.3g} ms", end=end))
    sheet.shapes.append(Line(tuple((across(e.plan.ms), down(e.metric)) for e in report.pareto), COLOURS[8]))
    kept = {e.plan.key for e in report.pareto}
    for each in found:
        colour = COLOURS[8] if each.plan.key in kept else OTHER
        chosen = each.plan.key == report.chosen.key
        said = f"{each.plan}, {report.metric} {each.metric:.5g}"
        dot = Dot(
            across(each.plan.ms), down(each.metric), 6 if chosen else 4, CHOSEN if chosen else colour, said
        )
        sheet.shapes.append(dot)


def _bars(sheet: Drawing, groups: Sequence[GroupChoice], top: float) -> None:
    slowest = max((group.ms for group in groups), default=0.0) or 1.0
    worst = max((group.loss for group in groups), default=0.0)
    losses = NAMES + 60 + BARS + 70
    heads = ((8.0, "sites"), (NAMES, "bits"), (NAMES + 60, "ms"), (losses, "predicted loss, logarithmic"))
    sheet.shapes += [Label(x, top, text) for x, text in heads]
    for place, group in enumerate(groups, start=1):
        y = top + ROW * place
        colour = colour_of(group.precision)
        sheet.shapes += [
            Line(((8, y + ROW / 2), (WIDTH - 8, y + ROW / 2)), FAINT),
            Label(8, y, _shortened(group.name)),
            Label(NAMES, y, group.precision, colour),
            Bar(NAMES + 60, y - 4, BARS * group.ms / slowest, 8, colour),
            Label(NAMES + 64 + BARS * group.ms / slowest, y, f"{group.ms:.3g}"),
        ]
        length = _share_of_loss(group.loss, worst)
        if length > 0:
            sheet.shapes.append(Bar(losses, y - 4, (WIDTH - 12 - losses) * length, 8, colour))


def _share_of_loss(loss: float, worst: float) -> float:
    if loss <= 0 or worst <= 0:
        return 0.0
    return max(1 + math.log10(loss / worst) / LOSS_DECADES, 0.0)


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span = low, (high - low) or 1.0
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + self._length * (value - self._low) / self._span


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    return _Scale(min(values), max(values), start, end)


def _shortened(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"


def tables(report: PlanReport) -> RenderableType:
    """Return the plan group by group, what was evaluated, and what was chosen."""
    shown: list[RenderableType] = [_groups(report.groups)]
    if report.pareto:
        shown.append(_evaluated(report.pareto, report))
    plan = report.chosen
    lines = {
        "predicted": f"{plan}{'' if report.limits.size else '; the size is without code'}",
        "limits": _limits(report),
        "costs": f"{_sources(report.groups)}; {report.threads} threads, {report.device or report.target}",
    }
    if report.chosen_metric is not None:
        lines[report.metric] = f"{report.chosen_metric:.5g}, float {report.float_metric:.5g}"
    if report.final_metric is not None:
        lines["made in full"] = f"{report.final_metric:.5g}, with the numbers of the chosen preset"
    return Group(*shown, facts("Plan", {**lines, "search": report.ended}))


def _groups(groups: Sequence[GroupChoice]) -> Table:
    slowest = max((group.ms for group in groups), default=0.0) or 1.0
    worst = max((group.loss for group in groups), default=0.0)
    table = Table(title="Bits of each group of sites", title_justify="left")
    for name in ("sites", "bits", "ms", "", "loss", "", "why"):
        table.add_column(name, overflow="fold", justify="right" if name in ("ms", "loss") else "left")
    dearest = sorted(groups, key=lambda group: -group.ms)[:MOST]
    for group in (g for g in groups if g in dearest):
        style = "dim" if group.precision == FLOAT else ""
        table.add_row(
            Text(group.name),
            Text(group.precision, style),
            f"{group.ms:.3g}",
            bar(group.ms / slowest),
            f"{group.loss:.2g}",
            bar(_share_of_loss(group.loss, worst)),
            Text(group.reason),
        )
    if len(groups) > MOST:
        table.caption = f"and {len(groups) - MOST} groups that take less time; --json has them all"
    return table


def _evaluated(pareto: Sequence[Evaluated], report: PlanReport) -> Table:
    table = Table(title="What no other plan beats", title_justify="left")
    for name in ("ms", _megabytes(report), report.metric, ""):
        table.add_column(name, justify="right")
    for each in pareto:
        mark = "chosen" if each.plan.key == report.chosen.key else ""
        table.add_row(f"{each.plan.ms:.4g}", f"{each.plan.size / 1e6:.4g}", f"{each.metric:.5g}", mark)
    return table


def _megabytes(report: PlanReport) -> str:
    """Return what sizes are of: the code's is found out where the file's is limited."""
    return "MB" if report.limits.size is not None else "MB without code"


def _limits(report: PlanReport) -> str:
    if report.max_drop is None:
        return str(report.limits)
    drop = f"a drop of {report.max_drop:g}"
    return drop if report.limits == Limits() else f"{report.limits} and {drop}"


def _sources(groups: Sequence[GroupChoice]) -> str:
    counts: dict[str, int] = {}
    for group in groups:
        for source in group.sources:
            counts[source] = counts.get(source, 0) + 1
    return ", ".join(f"{count} groups {source}" for source, count in counts.items()) or "none"
