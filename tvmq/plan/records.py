"""What an automatic plan was chosen from: for pictures and people."""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.plan.groups import SiteGroup
from tvmq.plan.problem import Assignment, Limits, Problem
from tvmq.plan.search import Evaluated, Outcome
from tvmq.record import Record


@dataclass(frozen=True, slots=True)
class GroupChoice(Record):
    """One group of sites: what it has, what that costs, and what it would cost in 8 bits and in float."""

    name: str
    sites: tuple[str, ...]
    precision: str
    ms: float
    float_ms: float | None
    size: int  # bytes
    loss: float  # predicted
    sources: tuple[str, ...]  # of its milliseconds
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport(Record):
    """A chosen plan beside what it was chosen from."""

    target: str
    device: str
    threads: int
    limits: Limits
    measure: str
    metric: str  # what was evaluated
    float_metric: float | None
    chosen: Assignment
    chosen_metric: float | None  # None where nothing was evaluated
    pareto: tuple[Evaluated, ...]
    evaluated: tuple[Evaluated, ...]
    groups: tuple[GroupChoice, ...]
    ended: str
    max_drop: float | None = None  # of the metric, where that was limited
    final_metric: float | None = None  # of what was made of the plan, its numbers chosen with the preset

    @property
    def drop(self) -> float | None:
        """Return how far the metric was below the float model's when plans were compared."""
        return self._below_float(self.chosen_metric)

    @property
    def final_drop(self) -> float | None:
        """Return how far the metric of what was made of the plan is below the float model's."""
        return self._below_float(self.final_metric)

    def _below_float(self, metric: float | None) -> float | None:
        return None if self.float_metric is None or metric is None else self.float_metric - metric


def choices_of(problem: Problem, plan: Assignment, reasons: dict[str, str]) -> tuple[GroupChoice, ...]:
    """Return what each group has under a plan; reasons by site."""
    return tuple(_choice(problem, plan, group, reasons) for group in problem.groups)


def _choice(problem: Problem, plan: Assignment, group: SiteGroup, reasons: dict[str, str]) -> GroupChoice:
    precision = plan.precisions[group.name]
    choices = problem.choices[group.name]
    loss, ms, size = choices[precision]
    sources = {cost.source for cost in problem.costs.sites if cost.site in group.sites}
    float_ms = choices["float"][1] if "float" in choices else None
    return GroupChoice(
        group.name, group.sites, precision, ms, float_ms, size, loss, tuple(sorted(sources)),
        reasons[group.sites[0]],
    )  # fmt: skip


def evaluated_of(outcome: Outcome | None) -> tuple[tuple[Evaluated, ...], tuple[Evaluated, ...], str]:
    """Return the Pareto set, all that was evaluated, and why the search ended."""
    if outcome is None:
        return (), (), "nothing was limited, so the fastest plan of 8 bits was taken without a search"
    return outcome.pareto, outcome.evaluated, outcome.ended
