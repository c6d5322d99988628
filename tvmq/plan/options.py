"""What a user says about a search for bits."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from tvmq.errors import UsageError
from tvmq.plan.problem import Limits

AUTO = "auto"  # as bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may cost, and how long `compile` looks for it.

    max_latency_ms: of one call, as predicted by the costs of its sites. max_size_mb: of the artifact, in
    millions of bytes; max_activation_mb: of all values alive at once. max_drop: how far the metric may fall
    below the float model's; then the fastest such plan is taken, else the plan of the best metric, of those
    that keep to max_latency_ms or, without it, are at most 20 % slower than the fastest.
    minutes: begin no evaluation after so long. evaluations: plans to try at most; with max_size_mb as many
    again each time that a plan's code turns out larger than was thought, four times at most.
    log: a file of JSON lines that keeps every result, so that the same command goes on where it was cut;
    None: in memory only. It does not see what a validation does: take a new file where that changed.
    measure: of sensitivity.MEASURES, what predicts losses. costs: the file of measured costs, None: that in
    the cache folder; measure_costs: whether to time on this machine what it lacks.
    """

    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_activation_mb: float | None = None
    max_drop: float | None = None
    minutes: float | None = None
    evaluations: int = 24
    log: str | os.PathLike[str] | None = None
    measure: str = "pooled"
    costs: str | os.PathLike[str] | None = None
    measure_costs: bool = True

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "max_size_mb", "max_activation_mb", "minutes"):
            self._require(name, getattr(self, name), zero=False)
        self._require("max_drop", self.max_drop, zero=True)
        if (
            not isinstance(self.evaluations, int)
            or isinstance(self.evaluations, bool)
            or self.evaluations < 1
        ):
            raise UsageError(f"evaluations={self.evaluations!r}: a whole number from 1 is wanted")

    @property
    def limits(self) -> Limits:
        """Return what the program keeps to."""
        size, memory = (
            None if megabytes is None else int(1e6 * megabytes)
            for megabytes in (self.max_size_mb, self.max_activation_mb)
        )
        return Limits(ms=self.max_latency_ms, size=size, memory=memory)

    @property
    def wants_nothing(self) -> bool:
        """Tell whether nothing is limited, and so nothing but speed decides."""
        return self.max_drop is None and self.limits == Limits()

    @property
    def path(self) -> Path | None:
        """Return where results are kept."""
        return None if self.log is None else Path(self.log)

    @staticmethod
    def _require(name: str, value: object, *, zero: bool) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and (value > 0 or (zero and value == 0))):  # type: ignore[operator]
            least = "from 0" if zero else "over 0"
            raise UsageError(f"{name}={value!r}: a number {least} is wanted; leave it out for no limit")


def merged(budget: Budget | None, **given: float | None) -> Budget:
    """Return a budget with the keywords that were given; UsageError for what both give."""
    budget = budget or Budget()
    values = {each.name: getattr(budget, each.name) for each in fields(budget)}
    for name, value in given.items():
        if value is not None and values[name] is not None:
            raise UsageError(f"{name}={value!r}: is in budget too, {values[name]!r}; give it once")
        values[name] = values[name] if value is None else value
    return Budget(**values)
