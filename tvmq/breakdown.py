"""Where the time of one call goes: the share of every kernel, and how near it comes to the peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvmq.record import Record
from tvmq.runtime import KernelTime
from tvmq.spec import Coverage
from tvmq.target import TargetProfile

SLOWEST = 5  # kernels that a printed benchmark lists


@dataclass(frozen=True, slots=True)
class Part(Record):
    """One kernel call; macs is 0 for what multiplies no matrices, the two rates are None then."""

    name: str  # the site it computes, or the kernel's symbol and ordinal
    kernel: str  # symbol in the library
    us: float
    share: float  # of the whole call, 0..1
    macs: int
    gmacs_per_s: float | None
    percent_of_peak: float | None  # of all threads' peak for the dtypes it multiplies


@dataclass(frozen=True, slots=True)
class Breakdown(Record):
    """The kernels of one call in order of execution, and what is left of its time."""

    parts: tuple[Part, ...]
    outside_us: float  # the whole call less its kernels: the virtual machine, copies of inputs and outputs
    peak_gmacs: (
        float  # 10**9 integer multiply-accumulates a second that the threads, or a GPU, can do at most
    )
    peak_source: str  # where that number comes from

    @property
    def whole_us(self) -> float:
        """Return the time of the call."""
        return self.outside_us + sum(part.us for part in self.parts)


@dataclass(frozen=True, slots=True)
class Benchmark(Record):
    """Latency of one call, and where it goes."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    breakdown: Breakdown  # of the fastest call
    others: float = 0.0  # cores that other programs used meanwhile
    disturbed: str = ""  # what that means, if the threads had to wait for a core
    gpu_ms: float | None = None  # median on a GPU, from the first launch to the last kernel's end: no copies

    def __str__(self) -> str:
        spread = f"{self.median_ms:.3f} ms (p10 {self.p10_ms:.3f}, p90 {self.p90_ms:.3f})"
        ordered = sorted(self.breakdown.parts, key=lambda part: -part.us)[:SLOWEST]
        slowest = [f"  {100 * part.share:4.1f} %  {part.us:8.1f} us  {part.name}" for part in ordered]
        where = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        if self.gpu_ms is not None:
            where = f"the GPU, of which {self.gpu_ms:.3f} ms without copies of inputs and outputs"
        lines = [f"{spread}, {self.runs} runs on {where}; the slowest kernels:", *slowest]
        return "\n".join(lines + [self.disturbed] * bool(self.disturbed))


def break_down(
    times: Sequence[KernelTime], whole_us: float, coverage: Coverage, profile: TargetProfile, threads: int
) -> Breakdown:
    """Set the kernels' times beside the whole call's and the peak of so many threads, or of the GPU.

    Where measurement makes the kernels longer than the whole, the kernels are the whole.
    """
    rows = {row.site: row for row in coverage.rows}
    core_ghz = profile.units(threads) * profile.machine.clock_ghz
    integer, floating = (core_ghz * k.macs_per_cycle for k in (profile.kernels[0], profile.kernels[-1]))
    whole_us = max(whole_us, sum(time.us for time in times))
    parts = []
    for time in times:
        row = rows.get(time.name)
        macs = row.macs if row else 0
        rate = macs / time.us / 1e3 if macs and time.us else None
        percent = 100 * rate / (integer if row and row.integer else floating) if rate else None
        share = time.us / whole_us if whole_us else 0.0
        parts.append(Part(time.name, time.kernel, time.us, share, macs, rate, percent))
    source = f"target profile {profile.name}: {profile.kernels[0].source}"
    return Breakdown(tuple(parts), whole_us - sum(part.us for part in parts), integer, source)
