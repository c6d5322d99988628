"""Tune the kernels of one model: share out the trials, measure, write down, choose.

Trials go in batches to the kernel where most time can be won. Whatever ends a session, what it measured is
in the database, and the next one goes on from there.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmq.errors import BusyMachineWarning, DeviceError, EnvironmentMismatchError
from tvmq.neighbours import Neighbours
from tvmq.progress import Progress, silent
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Decisions
from tvmq.tune.cost_model import CostModel, Family, family
from tvmq.tune.database import Database, Event, History, point, ratio
from tvmq.tune.interrupts import Interrupts
from tvmq.tune.measure import Bench, BrokenCandidateError
from tvmq.tune.options import Tune
from tvmq.tune.results import TunedKernel, TuningInterrupted
from tvmq.tune.search import propose

BATCH = 8  # trials between two looks at the cost model and at the other kernels
FINALISTS = 3
ATTEMPTS = 3  # at a comparison without other programs
MARGIN = 0.01  # a winner is so much faster than the default, else the default stays

Benches = Callable[[Use], Bench]


@dataclass(slots=True)
class _Task:
    use: Use
    history: History
    chance: random.Random
    model: CostModel
    wanted: int  # trials
    bench: Bench | None = None
    gain: float = 1.0  # what the last batch won, relative

    @property
    def left(self) -> int:
        return max(self.wanted - len(self.history.tried), 0)

    @property
    def promise(self) -> float:
        """How many microseconds of the model another batch may win, by rule of thumb."""
        times = [line.default_us or 0.0 for line in self.history.measured.values()]
        per_call = min(times) if times else 1e6  # what was never measured comes first
        return self.use.calls * per_call * (self.gain + BATCH / (BATCH + len(self.history.tried)) ** 2)


class Session:
    """Tunes the kernels in uses; benches makes what measures one of them."""

    def __init__(
        self,
        uses: Mapping[str, Use],
        options: Tune,
        database: Database,
        benches: Benches,
        progress: Progress = silent,
        now: Callable[[], float] = time.monotonic,
        *,
        threads: int = 1,
        neighbours: Callable[[], Any] = Neighbours,
    ) -> None:
        """threads: of the kernels, which want as many cores that nobody else uses."""
        self._database, self._benches, self._progress, self._now = database, benches, progress, now
        self._uses = uses
        self._threads, self._neighbours = threads, neighbours
        self._disturbed = 0  # kernels whose last comparison had not the cores for itself
        self._interrupts = Interrupts()
        self._ends = now() + 60 * options.minutes if options.minutes else float("inf")
        models: dict[Family, CostModel] = {}
        self._tasks = [
            _Task(
                use,
                database.history(name),
                random.Random(name),
                models.setdefault(family(use.kernel), CostModel()),
                min(options.trials, use.kernel.space.bound),
            )
            for name, use in uses.items()
            if use.kernel.space.bound > 1
        ]
        self._total = max(sum(task.left for task in self._tasks), 1)

    def run(self) -> tuple[TunedKernel, ...]:
        """Tune; raise TuningInterrupted on Ctrl-C."""
        self._progress("tune", 0, self._total)
        try:
            with self._interrupts.caught():
                self._search()
                for task in self._tasks:
                    if not self._interrupts.asked:
                        self._choose(task)
        except KeyboardInterrupt as cut:
            raise TuningInterrupted(self._kept()) from cut
        finally:
            for task in self._tasks:
                if task.bench is not None:
                    task.bench.close()
        if self._interrupts.asked:
            raise TuningInterrupted(self._kept())
        if self._disturbed:
            warnings.warn(BusyMachineWarning(self._what_was_disturbed()), stacklevel=2)
        self._progress("tune", self._total, self._total)
        return self.results()

    def results(self) -> tuple[TunedKernel, ...]:
        """Return what is known of every kernel, in the order of the model."""
        return tuple(_result(use, self._database.history(name)) for name, use in self._uses.items())

    def _search(self) -> None:
        self._learn()
        while not self._ended():
            open_tasks = [task for task in self._tasks if task.left]
            if not open_tasks:
                return
            self._batch(max(open_tasks, key=lambda task: task.promise))

    def _ended(self) -> bool:
        return self._interrupts.asked or self._now() >= self._ends

    def _learn(self) -> None:
        for task in self._tasks:
            space = task.use.kernel.space
            for line in task.history.measured.values():
                if line.decisions in space:
                    task.model.learn(task.use.kernel, line.decisions, ratio(line))

    def _batch(self, task: _Task) -> None:
        history, kernel = task.history, task.use.kernel
        candidates = propose(
            kernel.space,
            history.tried,
            [d for d in history.best(FINALISTS) if d in kernel.space],
            lambda several: task.model.predict(kernel, several),
            min(BATCH, task.left),
            task.chance,
        )
        if not candidates:
            task.wanted = len(history.tried)  # the whole space was tried
        self._expect(task, candidates)
        before = _least(history)
        for decisions in candidates:
            if self._ended():
                return
            self._trial(task, decisions)
        task.gain = max(1 - _least(history) / before, 0.0)

    def _expect(self, task: _Task, candidates: Sequence[Decisions]) -> None:
        with self._interrupts.unmasked():
            task.bench = task.bench or self._benches(task.use)
            task.bench.expect(candidates)

    def _trial(self, task: _Task, decisions: Decisions) -> None:
        name, append = task.use.kernel.semantics, self._database.append
        try:
            append(Event.BEGAN, name, decisions)
            event, facts = self._measured(task, decisions)
            append(event, name, decisions, **facts)
        except (KeyboardInterrupt, DeviceError, EnvironmentMismatchError, OSError):
            # Neither a lost board nor a full disk says anything of the kernel.
            append(Event.INTERRUPTED, name, decisions)
            raise
        ratio_found = facts["us"] / facts["default_us"] if event is Event.MEASURED else float("inf")
        task.model.learn(task.use.kernel, decisions, ratio_found)
        left = sum(task.left for task in self._tasks)
        self._progress("tune", min(max(self._total - left, 0), self._total), self._total)

    def _measured(self, task: _Task, decisions: Decisions) -> tuple[Event, dict[str, Any]]:
        try:
            with self._interrupts.unmasked():
                task.bench = task.bench or self._benches(task.use)
                us, default_us = (1e6 * seconds for seconds in task.bench.trial(decisions))
        except BrokenCandidateError as error:
            return Event.FAILED, {"why": str(error)}
        return Event.MEASURED, {"us": us, "default_us": default_us}

    def _choose(self, task: _Task) -> None:
        """Compare the best trials with the default once more, and write the winner down."""
        history, space = task.history, task.use.kernel.space
        chosen = history.chosen
        if not task.wanted or (chosen and (chosen.trials or 0) >= len(history.tried)):
            return
        while finalists := [d for d in history.best(FINALISTS) if d in space]:
            try:
                seconds = self._compared(task, finalists)
            except BrokenCandidateError as error:  # it worked before: others may take its place
                name = task.use.kernel.semantics
                self._database.append(Event.FAILED, name, error.decisions, why=str(error))
            else:
                if seconds is None:
                    self._disturbed += 1
                else:
                    self._write_winner(task, finalists, seconds)
                return

    def _compared(self, task: _Task, finalists: Sequence[Decisions]) -> list[float] | None:
        """Return the seconds of the default, then of the finalists; None if other programs took the cores.

        A kernel whose threads wait for a core looks a hundred times as slow as it is, and one without threads
        would be preferred to it.
        """
        with self._interrupts.unmasked():
            task.bench = task.bench or self._benches(task.use)
            for _ in range(ATTEMPTS):
                with self._neighbours() as watch:
                    seconds = task.bench.final(finalists)
                if not watch.crowd(self._threads):
                    return seconds
        return None

    def _what_was_disturbed(self) -> str:
        kernels = "1 kernel keeps" if self._disturbed == 1 else f"{self._disturbed} kernels keep"
        return (
            f"tune: other programs took the cores that {self._threads} threads want; {kernels} the default; "
            f"the trials are in {self._database.path}: on an idle machine, the same call goes on from there"
        )

    def _write_winner(self, task: _Task, finalists: Sequence[Decisions], seconds: Sequence[float]) -> None:
        """Write down the fastest; seconds: the default's, then the finalists'."""
        kernel = task.use.kernel
        winner = kernel.space.default
        us = default_us = 1e6 * seconds[0]
        for decisions, spent in zip(finalists, seconds[1:], strict=True):
            if 1e6 * spent < min(us, (1 - MARGIN) * default_us):
                winner, us = decisions, 1e6 * spent
        facts = {"us": us, "default_us": default_us, "trials": len(task.history.tried)}
        self._database.append(Event.CHOSEN, kernel.semantics, winner, **facts)

    def _kept(self) -> str:
        trials = sum(len(task.history.tried) for task in self._tasks)
        return (
            f"interrupted; the {trials} trials so far are kept in {self._database.path}, "
            f"the same call goes on from there"
        )


def _result(use: Use, history: History) -> TunedKernel:
    kernel, chosen = use.kernel, history.chosen
    if chosen is None or chosen.decisions not in kernel.space:
        return TunedKernel(kernel.name, kernel.semantics, use.calls, None, None, len(history.tried), None)
    same = point(chosen.decisions) == point(kernel.space.default)
    return TunedKernel(
        kernel.name,
        kernel.semantics,
        use.calls,
        chosen.default_us,
        chosen.us,
        len(history.tried),
        None if same else chosen.decisions,
    )


def _least(history: History) -> float:
    return min((ratio(line) for line in history.measured.values()), default=1.0)
