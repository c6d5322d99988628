"""How a long operation tells what it is doing, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called at the start of a stage with done = 0, then as it advances; total is never 0."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of `stage` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def step(progress: Progress, stage: str) -> Iterator[None]:
    """Report a stage that cannot tell how far it is, begun and then done."""
    progress(stage, 0, 1)
    yield
    progress(stage, 1, 1)


class StageClock:
    """A Progress that passes everything on and keeps the seconds of every stage.

    A stage lasts from its first report to the first report of the next stage, or to finish(). One that comes
    again (calibration does, after balancing) adds to its earlier time.
    """

    def __init__(self, report: Progress = silent, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._now = now
        self._stage: str | None = None
        self._since = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.finish()
            self._stage, self._since = stage, self._now()
        self._report(stage, done, total)

    def finish(self) -> None:
        """End the current stage."""
        if self._stage is not None:
            elapsed = self._now() - self._since
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + elapsed
        self._stage = None
