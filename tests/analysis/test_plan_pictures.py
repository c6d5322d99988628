from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.plan.cost_tables import problem
from tvmq.analysis.drawing import Bar, Dot, Label
from tvmq.analysis.plan_pictures import COLOURS, FLOAT_COLOUR, draw_plan, drawing, tables
from tvmq.plan.problem import Limits, Problem
from tvmq.plan.reasons import explained
from tvmq.plan.records import PlanReport, choices_of
from tvmq.plan.search import Evaluated, pareto_set

ROWS = {
    "blocks.0.<fc1>": {"w8a8": (0.01, 1.0, 10), "w4a8": (0.1, 0.5, 5), "float": (0.0, 3.0, 40)},
    "norm": {"w8a8": (0.0, 0.5, 1), "float": (0.0, 0.25, 1)},
}


def report(of: Problem, *, searched: bool = True) -> PlanReport:
    plans = [of.assignment({"blocks.0.<fc1>": name, "norm": "float"}) for name in ("w8a8", "w4a8", "float")]
    found = tuple(Evaluated(plan, 90.0 - 10 * plan.loss) for plan in plans) if searched else ()
    return PlanReport(
        target="cpu",
        device="",
        threads=1,
        limits=Limits(size=20),
        measure="projected",
        metric="top-1",
        float_metric=90.5 if searched else None,
        chosen=plans[1],
        chosen_metric=89.0 if searched else None,
        pareto=pareto_set(found),
        evaluated=found,
        groups=choices_of(of, plans[1], explained(of, plans[1], Limits())),
        ended="3 plans were evaluated",
    )


@pytest.fixture
def full() -> PlanReport:
    return report(problem(ROWS))


def test_the_drawing_has_a_dot_for_each_plan_and_bars_for_each_group(full: PlanReport):
    shapes = drawing(full).shapes
    dots = [shape for shape in shapes if isinstance(shape, Dot)]
    # To the right is slower, higher up is better.
    assert dots[1].x < dots[0].x < dots[2].x
    assert dots[2].y < dots[0].y < dots[1].y
    assert [dot.radius for dot in dots] == [4, 6, 4]
    bars = [shape for shape in shapes if isinstance(shape, Bar)]
    assert [bar.colour for bar in bars] == [COLOURS[4], COLOURS[4], FLOAT_COLOUR]
    assert bars[0].width == pytest.approx(2 * bars[2].width)
    said = {shape.text for shape in shapes if isinstance(shape, Label)}
    assert {"blocks.0.<fc1>", "w4a8", "float", "0.25"} <= said
    without = [s for s in drawing(report(problem(ROWS), searched=False)).shapes if isinstance(s, Dot)]
    assert without == []


def test_the_page_and_the_terminal_tell_the_same(full: PlanReport, tmp_path: Path):
    draw_plan(full, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "blocks.0.&lt;fc1&gt;" in page
    draw_plan(full, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    out = StringIO()
    Console(file=out, width=160).print(tables(full))
    for text in ("blocks.0.<fc1>", "w4a8", "saves 2.5 ms against float", "chosen", "top-1", "89, float 90.5"):
        assert text in out.getvalue()
    assert PlanReport.from_json(full.to_json()) == full


def test_what_limits_the_plan_is_all_said(full: PlanReport):
    def said(of: PlanReport) -> str:
        out = StringIO()
        Console(file=out, width=160).print(tables(of))
        return out.getvalue()

    assert "2e-05 MB and a drop of 0.01" in said(replace(full, max_drop=0.01))
    assert "without code" not in said(full)
    free = said(replace(full, max_drop=0.01, limits=Limits()))
    assert "MB without code" in free
    assert "│ a drop of 0.01 " in free
