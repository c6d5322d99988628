"""Fair timing: candidates take turns, so that a drifting clock or a busy neighbour hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvmq.errors import UsageError
from tvmq.record import Record


@dataclass(frozen=True, slots=True)
class Timing(Record):
    """Order statistics of n runs, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    n: int

    @classmethod
    def of_seconds(cls, seconds: list[float]) -> Timing:
        """Return the statistics of one or more durations."""
        ordered = sorted(seconds)
        median, low, high = (1e3 * percentile(ordered, q) for q in (0.5, 0.1, 0.9))
        return cls(median, low, high, 1e3 * ordered[0], len(ordered))

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms (p10 {self.p10_ms:.3f}, p90 {self.p90_ms:.3f}, n {self.n})"


def percentile(ordered: list[float], q: float) -> float:
    """Return the q-quantile, 0..1, of an ascending list, with linear interpolation."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def interleave(
    candidates: Mapping[str, Callable[[], Any]], rounds: int = 50, warmup: int = 5
) -> dict[str, Timing]:
    """Time each callable once per round, in an order that rotates, after `warmup` untimed rounds."""
    if not candidates or rounds < 1 or warmup < 0:
        raise UsageError(
            f"bench: {len(candidates)} candidates, rounds={rounds}, warmup={warmup}; "
            f"at least one candidate and one round are wanted"
        )
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        for number in range(-warmup, rounds):
            for name in rotated(names, number):
                began = time.perf_counter()
                candidates[name]()
                spent = time.perf_counter() - began
                if number >= 0:
                    seconds[name].append(spent)
    return {name: Timing.of_seconds(spent) for name, spent in seconds.items()}


def rotated(names: list[str], number: int) -> list[str]:
    """Return the order of a round: names, begun one further each time."""
    start = number % len(names) if names else 0
    return names[start:] + names[:start]


def measure(candidate: Callable[[], Any], rounds: int = 50, warmup: int = 5) -> Timing:
    """Time one callable."""
    return interleave({"": candidate}, rounds, warmup)[""]


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
