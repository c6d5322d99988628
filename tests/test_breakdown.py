"""Shares, rates and what is left outside of kernels."""

from __future__ import annotations

import pytest

from tvmq.breakdown import Benchmark, Breakdown, break_down
from tvmq.runtime import KernelTime
from tvmq.spec import Coverage, CoverageRow
from tvmq.target import load_profile

PROFILE = load_profile("x86_avx512_vbmi")
COVERAGE = Coverage(
    (
        CoverageRow("fc", "linear", True, "w8a8", 10_000_000),
        CoverageRow("head", "linear", False, "ignored", 1_000_000),
        CoverageRow("norm", "layer_norm", True, "w8a8", 0),
    )
)
TIMES = (
    KernelTime("fc", "linear_a", 100.0),
    KernelTime("norm", "layer_norm_b", 50.0),
    KernelTime("head", "matmul_c", 100.0),
    KernelTime("sum.0", "sum", 50.0),
)


def test_every_part_of_the_call_has_its_share():
    found = break_down(TIMES, 400.0, COVERAGE, PROFILE, threads=1)
    assert [part.share for part in found.parts] == [0.25, 0.125, 0.25, 0.125]
    assert (found.outside_us, found.whole_us) == (100.0, 400.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_are_set_beside_the_peak_of_their_dtypes(threads: int):
    found = break_down(TIMES, 400.0, COVERAGE, PROFILE, threads)
    rates = {part.name: (part.macs, part.gmacs_per_s, part.percent_of_peak) for part in found.parts}
    clock = PROFILE.machine.clock_ghz
    assert found.peak_gmacs == pytest.approx(threads * clock * 64)
    assert rates["fc"] == (10_000_000, 100.0, pytest.approx(100 * 100 / (threads * clock * 64)))
    assert rates["head"] == (1_000_000, 10.0, pytest.approx(100 * 10 / (threads * clock * 16)))
    assert rates["norm"] == rates["sum.0"] == (0, None, None)
    assert "x86_avx512_vbmi" in found.peak_source


def test_kernels_measured_longer_than_the_call_leave_nothing_outside():
    found = break_down(TIMES, 200.0, COVERAGE, PROFILE, threads=1)
    assert (found.outside_us, found.whole_us) == (0.0, 300.0)
    assert sum(part.share for part in found.parts) == pytest.approx(1)


def test_no_kernels_are_no_division_by_zero():
    assert break_down((), 0.0, COVERAGE, PROFILE, threads=1).whole_us == 0.0


def test_a_benchmark_is_printed_with_its_percentiles():
    shown = str(Benchmark(1.5, 1.4, 1.9, 7, 2, Breakdown((), 1.0, 0.2, "a datasheet")))
    assert shown.startswith("1.500 ms (p10 1.400, p90 1.900), 7 runs on 2 threads")


def test_a_gpu_is_compared_with_all_its_processors():
    found = break_down(TIMES, 400.0, COVERAGE, load_profile("h100"), threads=2)
    assert found.peak_gmacs == pytest.approx(132 * 1.83 * 4096)
    text = str(Benchmark(0.4, 0.3, 0.5, 9, 2, found, gpu_ms=0.25))
    assert "9 runs on the GPU, of which 0.250 ms without copies of inputs and outputs" in text
