"""Evaluate plans for real, the predicted best and its neighbours, and keep the best.

Losses are predicted one group at a time; the program picks the plan that they promise most of, and real
evaluations decide among it and those near it. Every result is a line in a file before the next evaluation
begins, and what is tried next follows from results alone: a search that was killed goes on where it was, and
ends with what it would have ended with.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tvmq.errors import InfeasibleBudgetError, SolverTooSlowError, UsageError
from tvmq.line_file import LineFile
from tvmq.plan.cost_table import FLOAT
from tvmq.plan.problem import Assignment, Limits, Problem, within
from tvmq.plan.program import solve, sweep
from tvmq.plan.reasons import no_slower
from tvmq.progress import Progress, silent
from tvmq.record import Record

NEIGHBOURS = 8  # plans tried around the best before they either give a better one or end the search
EVALUATIONS = 24
SLOWER = 1.2  # than the fastest plan, where no limit says how fast one must be
CHEAPER = 1e-3  # relative, what a plan that is good enough already must be improved by
SPREADS = (0.5, 1.0)  # of the logarithms of losses that are doubted, wider where that gave nothing better
Evaluate = Callable[[Assignment], float]  # higher is better


@dataclass(frozen=True, slots=True)
class Evaluated(Record):
    """A plan and what it was found to be worth; higher is better."""

    plan: Assignment
    metric: float

    def beats(self, other: Evaluated) -> bool:
        """Tell whether this one is no worse in anything and better in something."""
        mine, others = ((e.plan.ms, e.plan.size, -e.metric) for e in (self, other))
        return mine != others and all(a <= b for a, b in zip(mine, others, strict=True))


@dataclass(frozen=True, slots=True)
class Outcome(Record):
    """What a search ended with."""

    best: Evaluated
    enough: bool  # whether the best keeps to the drop that was allowed
    pareto: tuple[Evaluated, ...]  # milliseconds x bytes x metric, the fastest first
    evaluated: tuple[Evaluated, ...]  # in order
    ended: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is looked for: the cheapest plan whose metric is at least this, the best metric if None."""

    limits: Limits
    least_metric: float | None = None

    def reached(self, found: Evaluated) -> bool:
        """Tell whether a plan's metric is good enough."""
        return self.least_metric is None or found.metric >= self.least_metric

    def rank(self, found: Evaluated) -> tuple[float, ...]:
        """Return what is smallest for the best of all."""
        plan = found.plan
        if self.least_metric is not None and self.reached(found):
            return (0.0, plan.ms, plan.size, -found.metric)
        return (1.0, -found.metric, plan.ms, plan.size)


@dataclass(frozen=True, slots=True)
class _Line(Record):
    """One result of the searches that share this key."""

    search: str
    precisions: tuple[str, ...]
    metric: float


class Log:
    """The results of searches, one JSON line each; None: nowhere but in memory."""

    def __init__(self, path: Path | None, key: str) -> None:
        """key: all that results depend on; lines of another key are left alone.

        Raises UsageError for a file that cannot be written, or that holds anything else.
        """
        self._file, self._key = None if path is None else log_file(path), key
        self.known: dict[tuple[str, ...], float] = {}
        lines = () if self._file is None else self._file.read(_Line.from_json)
        for line in lines:
            if line.search == key and math.isfinite(line.metric):
                self.known[line.precisions] = line.metric

    def add(self, precisions: tuple[str, ...], metric: float) -> None:
        """Keep a result; it is on the disk when this returns."""
        self.known[precisions] = metric
        if self._file is not None:
            self._file.append(_Line(self._key, precisions, metric))


def log_file(path: Path) -> LineFile:
    """Return the file of a log, made if there is none; UsageError where it cannot be one."""
    file = LineFile(path, b'{"search": "', "search")
    for _ in file.read(_Line.from_json):
        break
    file.require_writable()
    return file


def search(
    problem: Problem,
    goal: Goal,
    evaluate: Evaluate,
    *,
    log: Log,
    minutes: float | None = None,
    evaluations: int = EVALUATIONS,
    seed: int = 0,
    progress: Progress = silent,
    now: Callable[[], float] = time.monotonic,
    began: float | None = None,
) -> Outcome:
    """Return the best of the plans that were evaluated, of at least one.

    Where neither time nor metric is limited, plans are at most SLOWER times the fastest within the other
    limits: without that, floats that add a thousandth to a metric would cost whole milliseconds.
    minutes: begin no evaluation after so long, from `began` on, of the clock `now`; None: from now on. What
    the solver has begun it ends, in at most program.SECONDS a plan: a loaded machine may see other plans.
    Results in the log count, and cost no time.
    Raises InfeasibleBudgetError where no plan keeps to the goal's limits.
    """
    if goal.limits.ms is None and goal.least_metric is None:
        in_time = SLOWER * solve(problem, goal.limits, "ms").ms
        goal = replace(goal, limits=replace(goal.limits, ms=in_time))
    started = now() if began is None else began
    ends = math.inf if minutes is None else started + 60 * minutes
    found: dict[tuple[str, ...], Evaluated] = {}
    ended = "no neighbour is better"
    progress("search", 0, evaluations)
    for plan in _proposals(problem, goal, found, seed):
        if found and len(found) >= evaluations:
            ended = f"{evaluations} plans were evaluated"
            break
        if plan.key not in log.known:
            if found and now() >= ends:
                ended = f"{minutes:g} minutes are over"
                break
            log.add(plan.key, checked_metric(evaluate(plan)))
        found[plan.key] = Evaluated(plan, log.known[plan.key])
        progress("search", min(len(found), evaluations), evaluations)
    progress("search", evaluations, evaluations)
    every = tuple(found.values())
    best = min(every, key=goal.rank)
    return Outcome(best, goal.reached(best), pareto_set(every), every, ended)


def pareto_set(found: Sequence[Evaluated]) -> tuple[Evaluated, ...]:
    """Return those that no other beats, the fastest first."""
    kept = [each for each in found if not any(other.beats(each) for other in found)]
    return tuple(sorted(kept, key=lambda each: (each.plan.ms, each.plan.size, -each.metric)))


def _proposals(
    problem: Problem, goal: Goal, found: Mapping[tuple[str, ...], Evaluated], seed: int
) -> Iterator[Assignment]:
    """Yield plans, each once: the predicted best, those of one width, whatever losses say (what is found is
    worth no less than they are), the predicted Pareto set, then neighbours of the best.
    """
    limits, seen = goal.limits, set()

    def new(plans: Sequence[Assignment]) -> Iterator[Assignment]:
        for plan in plans:
            plan = no_slower(problem, plan, limits)
            if plan.key not in seen:
                seen.add(plan.key)
                yield plan

    yield from new([solve(problem, limits)])
    names = sorted({name for choices in problem.choices.values() for name in choices} - {FLOAT})
    plans = [plan for name in names if (plan := uniform(problem, name)) and within(plan, limits)]
    yield from new(_outwards(plans, goal))
    with contextlib.suppress(SolverTooSlowError):  # neighbours are still to be had
        yield from new(_outwards(sweep(problem, limits), goal))
    misses = 0
    while misses < len(SPREADS):
        best = min(found.values(), key=goal.rank)
        near = _nearer(goal, best)
        try:
            yield from new(
                neighbours(problem, best.plan, near, spread=SPREADS[misses], seed=seed + len(seen))
            )
        except SolverTooSlowError:
            misses += 1
            continue
        except InfeasibleBudgetError:
            return  # nothing is cheaper
        improved = min(found.values(), key=goal.rank).plan.key != best.plan.key
        misses = 0 if improved else misses + 1


def _nearer(goal: Goal, best: Evaluated) -> Limits:
    """Return the limits of what may be better than the best: cheaper, if that is good enough already."""
    if goal.least_metric is None or best.metric < goal.least_metric:
        return goal.limits
    return replace(goal.limits, ms=best.plan.ms * (1 - CHEAPER))


def _outwards(plans: Sequence[Assignment], goal: Goal) -> list[Assignment]:
    """Return the least loss first; where the cheapest is wanted, every other one before the rest."""
    ordered = sorted(plans, key=lambda plan: plan.loss)
    return ordered if goal.least_metric is None else ordered[1::2] + ordered[::2]


def neighbours(
    problem: Problem,
    plan: Assignment,
    limits: Limits,
    *,
    spread: float = SPREADS[0],
    seed: int = 0,
    count: int = NEIGHBOURS,
) -> list[Assignment]:
    """Return plans within limits near one: best plans for doubted losses, then changes of one group.

    Losses are doubted by factors drawn anew for each; the least predicted loss first.
    """
    random = np.random.default_rng(seed)
    found: dict[tuple[str, ...], Assignment] = {}
    for _ in range(count // 2):
        doubted = {
            at: loss * float(np.exp(spread * random.standard_normal())) for at, loss in problem.losses.items()
        }
        other = solve(replace(problem, losses=doubted), limits).precisions
        found.setdefault(tuple(other.values()), problem.assignment(other))
    changed = [
        problem.assignment({**plan.precisions, group: precision})
        for group, choices in problem.choices.items()
        for precision in choices
        if precision != plan.precisions[group]
    ]
    changed = sorted((p for p in changed if within(p, limits)), key=lambda p: (p.loss, p.ms, p.key))
    cheaper = [p for p in changed if p.loss >= plan.loss]
    for other_plan in [*changed[: count // 4], *cheaper[: count // 4]]:
        found.setdefault(other_plan.key, other_plan)
    found.pop(plan.key, None)
    return list(found.values())[:count]


def checked_metric(metric: object) -> float:
    """Return a metric as a float; UsageError for what is no finite number."""
    try:
        value = getattr(metric, "item", lambda: metric)()
    except (ValueError, RuntimeError):  # an array of several
        value = metric
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(
            f"validation: returned {metric!r}, a finite number is wanted, higher for better models"
        )
    return float(value)


def uniform(problem: Problem, precision: str) -> Assignment | None:
    """Return the plan of one precision, 8 bits or float where a group lacks it; None without prices."""
    chosen = {}
    for group, choices in problem.choices.items():
        name = next((p for p in (precision, "w8a8", FLOAT) if p in choices), None)
        if name is None:
            return None
        chosen[group] = name
    return problem.assignment(chosen)
