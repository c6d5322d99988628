"""What a person reads."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from tvmq import report
from tvmq.breakdown import Benchmark, Breakdown, Part
from tvmq.doctor import Check, Diagnosis, State
from tvmq.spec import Coverage, CoverageRow, Plan, Precision, SitePlan
from tvmq.target import builtin_profiles
from tvmq.verification import Verification

COVERAGE = Coverage(
    (
        CoverageRow("blocks.0.attn", "attention", True, "w8a8", 100),
        CoverageRow("blocks.0.fc1", "linear", True, "integer kernel", 700),
        CoverageRow("blocks.0.fc2", "linear", True, "w8a8", 100),
        CoverageRow("head", "linear", False, "ignored by 'head'", 100),
    )
)


def text_of(renderable: RenderableType) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def lines_with(word: str, renderable: RenderableType) -> list[list[str]]:
    rows = [line for line in text_of(renderable).splitlines() if word in line]
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows if "│" in row]


def test_coverage_says_what_is_integer_and_why_the_rest_is_not():
    summary = report.coverage_summary(COVERAGE)
    assert lines_with("linear", summary) == [
        ["linear", "2", "integer", "80.0 %", ""],
        ["linear", "1", "float", "10.0 %", "ignored by 'head'"],
    ]
    assert "3 of 4 sites and 90.0 % of the multiplications are integer." in text_of(summary)
    sites = [SitePlan(row.site, row.kind, Precision(4, 8), row.reason) for row in COVERAGE.rows]
    listed = report.coverage_sites(COVERAGE, Plan("17", tuple(sites)), {"blocks.0.fc1": "int4, 9.2 kB"})
    why = "integer kernel"
    assert lines_with("blocks.0.fc1", listed) == [
        ["blocks.0.fc1", "linear", "integer", "w4a8", "int4, 9.2 kB", "70.0 %", why]
    ]
    assert lines_with("head", listed)[0][2:4] == ["float", ""]
    assert "0 of 0 sites" in text_of(report.coverage_summary(Coverage(())))


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (1, "█" * 24), (0.5, "█" * 12), (1 / 192, "▏"), (2, "█" * 24)]
)
def test_a_bar_is_as_long_as_its_share(share: float, drawn: str):
    assert report.bar(share) == drawn


def test_the_slowest_kernels_come_first_and_the_others_are_summed():
    parts = [
        Part("site.0", "linear", 10.0, 0.1, 0, None, None),
        Part("site.1", "linear", 50.0, 0.5, 2_500_000, 50.0, 25.0),
        Part("sum.0", "sum", 20.0, 0.2, 0, None, None),
    ]
    found = report.breakdown(Breakdown(tuple(parts), 20.0, 200.0, "a datasheet"), most=1)
    assert lines_with("site.", found) == [["site.1", "linear", "50.0", "50.0 %", "50", "25 %", "█" * 6]]
    assert lines_with("others", found)[0][:4] == ["2 others", "", "30.0", "30.0 %"]
    assert lines_with("outside of kernels", found)[0][2:4] == ["20.0", "20.0 %"]
    assert "The whole call reaches 12 % of 200 GMAC/s (a datasheet)." in text_of(found)
    assert "(no site)" in text_of(report.breakdown(Breakdown(tuple(parts), 20.0, 200.0, "a datasheet")))


def test_verdicts_name_what_was_compared():
    equal = Verification("checksums", 75, 1, ())
    assert "75 sites and 1 outputs compared with the checksums, all equal." in text_of(
        report.verification(equal)
    )
    different = report.verification(Verification("reference", 75, 1, ("blocks.3.attn.qkv", "output 0")))
    assert "blocks.3.attn.qkv" in text_of(different)
    assert "reference, 2 differ." in text_of(different)


def test_numbers_carry_their_units():
    timing = report.benchmark(
        Benchmark(28.8, 28.1, 30.25, 50, 1, Breakdown((), 28.8e3, 100.0, "a datasheet"))
    )
    assert ["median", "28.800 ms"] in lines_with("ms", timing)
    assert (report.size(22_400_000), report.size(1500)) == ("22.4 MB", "1.5 kB")
    assert lines_with("total", report.stages({"calibrate": 3.0, "build": 1.0})) == [["total", "4.0", ""]]


def test_the_native_target_is_marked():
    table = report.targets(builtin_profiles(), "x86_avx2")
    assert any(row[1] == "native, x86" for row in lines_with("x86_avx2", table))


def test_the_diagnosis_ends_in_a_sentence():
    def verdict(state: State) -> str:
        return text_of(report.diagnosis(Diagnosis((Check("linker", "none", state, "pip install ziglang"),))))

    assert "Everything that tvmq needs is here." in verdict(State.OK)
    assert "Artifacts run here, models cannot be compiled" in verdict(State.NO_COMPILE)
    assert "does not work here" in verdict(State.NO_RUN)
    assert "pip install ziglang" in verdict(State.NO_RUN)
