"""Choose a precision for every group of sites by an integer program over costs and losses.

One binary per group and choice; loss, milliseconds and bytes add up over groups. Between them, continuous
variables follow from the binaries, as only one value of each is possible, or pays: for a sum, whether it is
in integers; for a value, whether it is stored as such, and quantized; for each reading of it, whether it is
dequantized. So a conversion costs once, however many read its result. Peak memory is one constraint per
moment of the program at which other values are alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmq.errors import InfeasibleBudgetError, SolverTooSlowError
from tvmq.plan.cost_table import FLOAT
from tvmq.plan.problem import SLACK, Assignment, Limits, Problem
from tvmq.plan.values import Value

SECONDS = 20.0  # after which the best plan found so far is taken
TIMED_OUT = 1  # scipy's status of a result
TIE = 1e-7  # what all of a model's time and size count for beside the largest loss: they decide ties
UNIT = 1e3  # of the objective, whose differences the solver sees down to 1e-7
TOTALS = ("loss", "ms", "size")


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
        raise SolverTooSlowError(
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


@dataclass(slots=True)
class _Linear:
    """A number and multiples of variables, by column."""

    constant: float = 0.0
    of: dict[int, float] = field(default_factory=dict)

    def add(self, factor: float, other: _Linear) -> _Linear:
        """Add so many times another; return itself."""
        self.constant += factor * other.constant
        for column, value in other.of.items():
            self.of[column] = self.of.get(column, 0.0) + factor * value
        return self

    def less(self, other: _Linear) -> _Linear:
        """Return the difference."""
        found = _Linear(self.constant, dict(self.of)).add(-1.0, other)
        return _Linear(found.constant, {at: value for at, value in found.of.items() if value})


class _Program:
    """The matrices of a problem; limits are the right side of some rows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.timed_out = False  # whether the last search for a plan was given up
        self._columns = [(g.name, precision) for g in problem.groups for precision in problem.choices[g.name]]
        self._width = len(self._columns)
        self._binaries = {column: _Linear(0.0, {at: 1.0}) for at, column in enumerate(self._columns)}
        self._not_negative: list[_Linear] = []
        self._ones = [_Linear(-1.0) for _ in problem.groups]
        self._totals = [_Linear(fixed) for fixed in (0.0, *problem.fixed)]
        for group, one in zip(problem.groups, self._ones, strict=True):
            for precision, costs in problem.choices[group.name].items():
                binary = self._binaries[group.name, precision]
                one.add(1.0, binary)
                for total, cost in zip(self._totals, costs, strict=True):
                    total.add(cost, binary)
        self._forms = {site: self._of_group(group.name) for group in problem.groups for site in group.sites}
        self._alive = [_Linear(moment.fixed) for moment in problem.moments]
        made = [self._made(value) for value in problem.costs.values]
        for value, integer in zip(problem.costs.values, made, strict=True):
            self._flow(value, integer)

    def solved(self, limits: Limits, least: str) -> Assignment | None:
        """Return the plan, None if there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        rows, right = self._matrix(self._ones)
        constraints = [LinearConstraint(rows, right, right)]
        if self._not_negative:
            rows, right = self._matrix(self._not_negative)
            constraints.append(LinearConstraint(rows, right, np.inf))
        pairs = [*zip(self._totals, (limits.loss, limits.ms, limits.size), strict=True)]
        pairs += [(alive, limits.memory) for alive in self._alive]
        within = [_at_most(total, limit) for total, limit in pairs if limit is not None]
        if within:
            rows, right = self._matrix(within)
            constraints.append(LinearConstraint(rows, right, np.inf))
        result = milp(
            self._objective(TOTALS.index(least)),
            integrality=np.arange(self._width) < len(self._columns),
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
        rows = np.zeros((len(self._totals), self._width))
        for row, total in zip(rows, self._totals, strict=True):
            row[list(total.of)] = list(total.of.values())
        scaled = [UNIT * row / (np.abs(row).max(initial=0) or 1.0) for row in rows]
        second, third = (index for index in (1, 2, 0) if index != first)
        return scaled[first] + TIE * scaled[second] + TIE / 10 * scaled[third]

    def _matrix(self, rows: Sequence[_Linear]) -> tuple[Any, Any]:
        """Return the variables' factors, and what these must come to for the rows to be 0."""
        from scipy.sparse import csr_array

        which = [at for at, row in enumerate(rows) for _ in row.of]
        columns = [column for row in rows for column in row.of]
        factors = np.array([factor for row in rows for factor in row.of.values()], float)
        found = csr_array((factors, (which, columns)), shape=(len(rows), self._width))
        return found, np.array([-row.constant for row in rows])

    def _variable(self) -> _Linear:
        self._width += 1
        return _Linear(0.0, {self._width - 1: 1.0})

    def _of_group(self, name: str) -> _Linear:
        """Return whether a group is in integers, 0 or 1."""
        floating = self._binaries.get((name, FLOAT))
        return _Linear(1.0) if floating is None else _Linear(1.0).less(floating)

    def _any(self, several: Iterable[_Linear]) -> _Linear:
        """Return 1 if one of several is 1, else 0."""
        found: list[_Linear] = []
        for each in several:
            if each not in found and each != _Linear():
                found.append(each)
        if len(found) < 2 or _Linear(1.0) in found:
            return _Linear() if not found else found[0] if len(found) == 1 else _Linear(1.0)
        result, total = self._variable(), _Linear()
        for each in found:
            self._not_negative.append(result.less(each))
            total.add(1.0, each)
        self._not_negative.append(total.less(result))
        return result

    def _at_least(self, several: Iterable[_Linear]) -> _Linear:
        """Return what is, where it costs something, the largest of several and 0."""
        found = [each for each in several if each.of or each.constant > 0]
        if not any(each.of for each in found):
            return _Linear(max((each.constant for each in found), default=0.0))
        result = self._variable()
        self._not_negative += [result.less(each) for each in found]
        return result

    def _made(self, value: Value) -> _Linear:
        """Return whether a value is made in integers; earlier ones have been asked before."""
        made = self._any(self._forms.get(writer, _Linear()) for writer in value.writers)
        if value.is_sum:
            self._forms[value.name] = made
        return made

    def _flow(self, value: Value, made: _Linear) -> None:
        """Add what the forms of a value cost; see values.forms_of."""
        nothing = _Linear()
        wanted = self._any(self._forms.get(reader, nothing) for reader in value.readers)
        stored = wanted if value.direct else self._any([wanted, made])
        quantized = self._at_least([wanted.less(made)])
        copied = [
            self._at_least([stored.less(self._forms.get(reader, nothing)) for reader in reading.readers])
            for reading in value.readings
        ]
        ms = self._totals[TOTALS.index("ms")].add(value.from_float, quantized)
        for reading, copy in zip(value.readings, copied, strict=True):
            ms.add(reading.to_float, copy)
        sizes = self._problem.copies[value.name]
        for moment, alive in zip(self._problem.moments, self._alive, strict=True):
            if value.name not in moment.floating:
                continue
            alive.add(moment.floating[value.name], _Linear(1.0).less(stored))
            alive.add(moment.stored.get(value.name, 0), stored)
            alive.add(moment.floating[value.name] * (moment.made == value.name), quantized)
            for size, copy in zip(sizes, copied, strict=True):
                alive.add(size, copy)


def _at_most(total: _Linear, limit: float) -> _Linear:
    """Return what is not negative where a total keeps to a limit, scaled."""
    scale = max(abs(limit - total.constant), max(map(abs, total.of.values()), default=0.0), 1e-30)
    room = _Linear(limit + SLACK / 2 * abs(limit)).less(total)
    return _Linear().add(1 / scale, room)
