"""What is compared: plans at a size, and within a time, each made by one call of tvmq.compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MARGIN = 1.1  # a latency budget is so many times the fastest plan's


@dataclass(frozen=True)
class Case:
    """One plan; where its limit follows from others, these are measured before it."""

    name: str
    bits: str
    size_of: str = ""  # the case whose file it may not exceed
    share: float = 1.0  # of that
    slower_than: str = ""  # the case whose predicted time it may exceed by MARGIN
    budget: Mapping[str, Any] = field(default_factory=dict)  # more of tvmq.Budget

    @property
    def after(self) -> str:
        """Return the case that this one's limit follows from."""
        return self.size_of or self.slower_than

    def limits(self, rows: Mapping[str, Any]) -> dict[str, float]:
        """Return the options of tvmq.compile that limit it; rows by name."""
        if self.size_of:
            return {"max_size_mb": self.share * rows[self.size_of].bytes / 1e6}
        return {"max_latency_ms": MARGIN * rows[self.slower_than].ms} if self.slower_than else {}


# What a ranking by SQNR gives: the best plan by these losses, as it is.
SQNR = {"measure": "sqnr", "evaluations": 1}
EIGHT, SIX, FOUR, FASTEST = "uniform, 8 bits", "uniform, 6 bits", "uniform, 4 bits", "the fastest plan"
CASES = (
    Case(EIGHT, "w8a8"),
    Case(SIX, "w6a8"),
    Case("auto, size of 6 bits", "auto", SIX),
    Case("by SQNR, size of 6 bits", "auto", SIX, budget=SQNR),
    Case("auto, half the size of 8 bits", "auto", EIGHT, 0.5),
    Case("by SQNR, half the size of 8 bits", "auto", EIGHT, 0.5, budget=SQNR),
    Case(FOUR, "w4a8"),
    Case(FASTEST, "auto"),
    Case("auto, 10 % slower than the fastest", "auto", slower_than=FASTEST),
)
BY_NAME = {case.name: case for case in CASES}


def needed(names: list[str]) -> list[Case]:
    """Return the cases of these names and those that their limits follow from, in order."""
    wanted = set(names) | {BY_NAME[name].after for name in names}
    return [case for case in CASES if case.name in wanted]
