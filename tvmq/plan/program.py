"""Choose a precision for every group of sites by an integer program over costs and losses.

One binary per group and choice. Loss, milliseconds and bytes add up over groups; where one side of an edge is
float and the other integer, a continuous variable is at least the difference of the two groups' float
binaries and carries the cost of the conversion (as conversions only ever cost, it is no larger than that).
Peak memory is one constraint per moment of the program at which other values are alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tvmq.errors import InfeasibleBudgetError
from tvmq.plan.cost_table import FLOAT, CostTable
from tvmq.plan.groups import SiteGroup
from tvmq.record import Record

EIGHT = "w8a8"
SLACK = 1e-6  # relative: what rounding in the solver may leave of a limit
SECONDS = 20.0  # after which the best plan found so far is taken
TIMED_OUT = 1  # scipy's status of a result
TIE = 1e-7  # what all of a model's time and size count for beside the largest loss: they decide ties
UNIT = 1e3  # of the objective, whose differences the solver sees down to 1e-7
OUTSIDE = ""  # the group of the model's inputs and outputs, which are float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Record):
    """What a plan may cost at most; None: anything."""

    ms: float | None = None
    size: int | None = None  # bytes of the artifact
    memory: int | None = None  # bytes of activations at once
    loss: float | None = None

    def __str__(self) -> str:
        named = {"ms": self.ms, "loss": self.loss}
        said = [f"{value:g} {name}" for name, value in named.items() if value is not None]
        megabytes = {"MB": self.size, "MB of activations": self.memory}
        said += [f"{value / 1e6:.4g} {name}" for name, value in megabytes.items() if value is not None]
        return " and ".join(said) or "no limit"


@dataclass(frozen=True, slots=True)
class Assignment(Record):
    """A precision's name for every group, and what the plan is predicted to cost."""

    precisions: Mapping[str, str]
    loss: float
    ms: float
    size: int  # bytes
    memory: int  # bytes of activations at once

    @property
    def key(self) -> tuple[str, ...]:
        """Return the precisions in the order of the groups."""
        return tuple(self.precisions.values())

    def __str__(self) -> str:
        return f"{self.ms:.4g} ms, {self.size / 1e6:.4g} MB, predicted loss {self.loss:.3g}"


@dataclass(frozen=True, slots=True)
class Moment:
    """The bytes alive at one point: fixed, and those of each group's results by whether it is float."""

    fixed: int
    integer: Mapping[str, int]
    floating: Mapping[str, int]


@dataclass(frozen=True)
class Problem:
    """What there is to choose from, and what each choice costs."""

    groups: tuple[SiteGroup, ...]
    losses: Mapping[tuple[str, str], float]  # by group and precision; float has 0
    costs: CostTable
    moments: Sequence[Moment] = field(default=())

    @cached_property
    def choices(self) -> dict[str, dict[str, tuple[float, float, int]]]:
        """Return loss, milliseconds and bytes by group and precision; what has no price is no choice."""
        return {group.name: self._priced(group) for group in self.groups}

    @cached_property
    def edges(self) -> tuple[tuple[str, str, float, float], ...]:
        """Return (group, group, ms to integer, ms to float) of the conversions between groups."""
        at = {site: group.name for group in self.groups for site in group.sites}
        found: dict[tuple[str, str], tuple[float, float]] = {}
        for edge in self.costs.edges:
            writer, reader = (at.get(site, OUTSIDE) for site in (edge.writer, edge.reader))
            if writer != reader:
                up, down = found.get((writer, reader), (0.0, 0.0))
                found[writer, reader] = up + edge.from_float, down + edge.to_float
        return tuple((*pair, *costs) for pair, costs in found.items())

    def assignment(self, precisions: Mapping[str, str]) -> Assignment:
        """Return what a plan costs; precisions of all groups."""
        chosen = [self.choices[group.name][precisions[group.name]] for group in self.groups]
        ms = self.costs.fixed_ms + sum(each[1] for each in chosen)
        floats = {group.name: precisions[group.name] == FLOAT for group in self.groups} | {OUTSIDE: True}
        for writer, reader, from_float, to_float in self.edges:
            if floats[writer] != floats[reader]:
                ms += from_float if floats[writer] else to_float
        memory = max((_alive(moment, floats) for moment in self.moments), default=0)
        size = self.costs.fixed_bytes + sum(each[2] for each in chosen)
        ordered = {group.name: precisions[group.name] for group in self.groups}
        return Assignment(ordered, sum(each[0] for each in chosen), ms, size, memory)

    def _priced(self, group: SiteGroup) -> dict[str, tuple[float, float, int]]:
        found = {}
        for precision in group.choices:
            ms, size, known = 0.0, 0, True
            for site in group.sites:
                cost = self._cost(site, precision)
                if cost is None:
                    known = not any(self._cost(site, other) for other in group.choices) and known
                    continue
                ms, size = ms + cost.ms, size + cost.weight_bytes
            if known:
                loss = 0.0 if precision == FLOAT else self.losses[group.name, precision]
                found[precision] = loss, ms, size
        return found

    def _cost(self, site: str, precision: str) -> Any:
        """Return the cost of a site; what has 8 bits whatever its group has (a table) is priced at that."""
        rows = self.costs.of
        exact = rows.get((site, precision))
        if exact is not None or precision == FLOAT or not self._eight_only(site):
            return exact
        return rows.get((site, EIGHT))

    def _eight_only(self, site: str) -> bool:
        return self._integer_prices.get(site) == {EIGHT}

    @cached_property
    def _integer_prices(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for cost in self.costs.sites:
            if cost.precision != FLOAT:
                found.setdefault(cost.site, set()).add(cost.precision)
        return found


def within(plan: Assignment, limits: Limits) -> bool:
    """Tell whether a plan keeps to the limits."""
    pairs = (
        (plan.ms, limits.ms),
        (plan.size, limits.size),
        (plan.memory, limits.memory),
        (plan.loss, limits.loss),
    )
    return all(most is None or value <= most + SLACK * abs(most) for value, most in pairs)


def solve(problem: Problem, limits: Limits, least: str = "loss") -> Assignment:
    """Return the plan of least "loss", "ms" or "size" within limits; ties go to the faster, then the smaller.

    Raises InfeasibleBudgetError, which names the fastest, the smallest and the most accurate plan; or says
    that a group has no price, or that the solver was too slow to tell.
    """
    for name, choices in problem.choices.items():
        if not choices:
            raise InfeasibleBudgetError(f"{name}: no precision of it has a price here; measure its costs")
    program = _Program(problem)
    found = program.solved(limits, least)
    if found is not None:
        return found
    if program.timed_out:
        raise InfeasibleBudgetError(
            f"budget of {limits}: {SECONDS:g} seconds were not enough to find a plan, nor to show that there "
            "is none; allow more"
        )
    ends = {"fastest": "ms", "smallest": "size", "most accurate": "loss"}
    told = []
    for name, what in ends.items():
        plan = program.solved(Limits(), what)
        told += [f"the {name} plan takes {plan}"] if plan else []
    raise InfeasibleBudgetError("; ".join([f"budget of {limits}: no plan keeps to it", *told, "allow more"]))


def sweep(problem: Problem, limits: Limits, points: int = 12) -> tuple[Assignment, ...]:
    """Return plans of the predicted Pareto set within limits, by milliseconds, the fastest first.

    Along both scales, between the fastest or smallest plan and the most accurate one.
    """
    program = _Program(problem)
    best = solve(problem, limits)
    found = {best.key: best}
    for what in ("ms", "size"):
        end = program.solved(limits, what) or best
        low, high = getattr(end, what), getattr(best, what)
        for step in range(points // 2):
            most = low + (high - low) * step / max(points // 2, 1)
            tighter = {"ms": limits.ms, "size": limits.size, "memory": limits.memory, "loss": limits.loss}
            tighter[what] = most if what == "ms" else round(most)
            plan = program.solved(Limits(**tighter), "loss")  # type: ignore[arg-type]
            if plan is not None:
                found[plan.key] = plan
    return tuple(sorted(found.values(), key=lambda plan: (plan.ms, plan.size, plan.loss)))


class _Program:
    """The matrices of a problem; limits are the right side of its rows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.timed_out = False  # whether the last search for a plan was given up
        self._columns = [
            (group.name, precision) for group in problem.groups for precision in problem.choices[group.name]
        ]
        place = {column: index for index, column in enumerate(self._columns)}
        costs = [problem.choices[group][precision] for group, precision in self._columns]
        self._edges = [(*edge[:2], cost, way) for edge in problem.edges for cost, way in _ways(edge)]
        self._width = len(self._columns) + len(self._edges)
        self._rows = np.zeros((3, self._width))
        self._rows[:, : len(costs)] = np.array(costs, float).reshape(-1, 3).T
        for index, (_, _, cost, _) in enumerate(self._edges, start=len(costs)):
            self._rows[1, index] = cost
        self._ones = np.zeros((len(problem.groups), self._width))
        for index, group in enumerate(problem.groups):
            for precision in problem.choices[group.name]:
                self._ones[index, place[group.name, precision]] = 1
        self._links, self._least = self._linked(place)
        self._alive, self._fixed = self._moments(place)

    def solved(self, limits: Limits, least: str) -> Assignment | None:
        """Return the plan, None if there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        table = self._problem.costs
        constraints = [LinearConstraint(self._ones, 1, 1)]
        if len(self._links):
            constraints.append(LinearConstraint(self._links, self._least, np.inf))
        most = (limits.loss, limits.ms, limits.size)
        fixed = (0.0, table.fixed_ms, table.fixed_bytes)
        for row, limit, already in zip(self._rows, most, fixed, strict=True):
            if limit is not None:
                scale = max(abs(limit - already), np.abs(row).max(initial=0), 1e-30)
                right = (limit - already + SLACK / 2 * abs(limit)) / scale
                constraints.append(LinearConstraint(row / scale, -np.inf, right))
        if limits.memory is not None and len(self._alive):
            right = (limits.memory - self._fixed) / max(limits.memory, 1)
            constraints.append(LinearConstraint(self._alive / max(limits.memory, 1), -np.inf, right))
        integrality = np.zeros(self._width)
        integrality[: len(self._columns)] = 1
        result = milp(
            self._objective(("loss", "ms", "size").index(least)),
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-7, "time_limit": SECONDS},
        )
        self.timed_out = result.status == TIMED_OUT
        if result.x is None:
            return None
        taken = [self._columns[i] for i in np.flatnonzero(result.x[: len(self._columns)] > 0.5)]
        return self._problem.assignment(dict(taken))

    def _objective(self, first: int) -> Any:
        """Return costs of order UNIT whose ties the other two decide, time before size."""
        scaled = [UNIT * row / (np.abs(row).max(initial=0) or 1.0) for row in self._rows]
        second, third = (index for index in (1, 2, 0) if index != first)
        return scaled[first] + TIE * scaled[second] + TIE / 10 * scaled[third]

    def _linked(self, place: Mapping[tuple[str, str], int]) -> tuple[Any, Any]:
        """Return rows and their least values: an edge's variable reaches the difference of float binaries."""
        rows = np.zeros((len(self._edges), self._width))
        least = np.zeros(len(self._edges))
        for index, (writer, reader, _, way) in enumerate(self._edges):
            rows[index, len(self._columns) + index] = 1
            for group, sign in ((writer, -way), (reader, way)):
                if group == OUTSIDE:
                    least[index] -= sign
                elif (group, FLOAT) in place:
                    rows[index, place[group, FLOAT]] += sign
        return rows, least

    def _moments(self, place: Mapping[tuple[str, str], int]) -> tuple[Any, Any]:
        rows = np.zeros((len(self._problem.moments), self._width))
        fixed = np.array([moment.fixed for moment in self._problem.moments], float)
        for row, moment in zip(rows, self._problem.moments, strict=True):
            for (group, precision), column in place.items():
                row[column] = (moment.floating if precision == FLOAT else moment.integer).get(group, 0)
        return rows, fixed


def _ways(edge: tuple[str, str, float, float]) -> list[tuple[float, int]]:
    """Return (cost, sign) of the conversions that cost something: 1 where the writer is the float one."""
    return [(cost, sign) for cost, sign in ((edge[2], 1), (edge[3], -1)) if cost > 0]


def _alive(moment: Moment, floats: Mapping[str, bool]) -> int:
    named = {*moment.integer, *moment.floating}
    return moment.fixed + sum(
        (moment.floating if floats[name] else moment.integer).get(name, 0) for name in named
    )
