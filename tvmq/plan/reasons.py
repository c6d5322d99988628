"""The rule that integers are never slower than float, and what a plan says of every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tvmq.errors import InfeasibleBudgetError, SolverTooSlowError
from tvmq.plan.cost_table import FLOAT
from tvmq.plan.groups import SiteGroup
from tvmq.plan.problem import Assignment, Limits, Problem, within
from tvmq.plan.program import solve

NOISE = 1e-9  # ms


def no_slower(problem: Problem, plan: Assignment, limits: Limits) -> Assignment:
    """Return the plan with every group in float that integers make no faster, where that keeps to the limits.

    First those that are slower together, though none of them alone, with its conversions, would be faster in
    float; then one by one, the dearest first, conversions counted as they are in the plan.
    """
    plan = _faster_together(problem, plan, limits)
    while True:
        better = [
            other
            for group in problem.groups
            if (other := _in_float(problem, plan, group)) is not None
            and other.ms <= plan.ms + NOISE
            and within(other, limits)
        ]
        if not better:
            return plan
        plan = min(better, key=lambda other: (other.ms, other.key))


def _faster_together(problem: Problem, plan: Assignment, limits: Limits) -> Assignment:
    """Return the fastest plan that has some groups in float, and is otherwise the same."""
    kept = tuple(
        replace(group, choices=tuple(c for c in group.choices if c in (FLOAT, plan.precisions[group.name])))
        for group in problem.groups
    )
    try:
        found = solve(replace(problem, groups=kept), limits, "ms").precisions
    except (InfeasibleBudgetError, SolverTooSlowError):
        return plan
    other = problem.assignment(found)
    return other if other.ms < plan.ms - NOISE and within(other, limits) else plan


def explained(problem: Problem, plan: Assignment, limits: Limits) -> dict[str, str]:
    """Return why each site of the groups has what it has."""
    return {
        site: said
        for group in problem.groups
        for said in [_reason(problem, plan, group, limits)]
        for site in group.sites
    }


def _reason(problem: Problem, plan: Assignment, group: SiteGroup, limits: Limits) -> str:
    chosen = plan.precisions[group.name]
    source = (
        "/".join(sorted({c.source for c in problem.costs.sites if c.site in group.sites})) or "not priced"
    )
    if chosen == FLOAT:
        others = [_with(problem, plan, group, name) for name in problem.choices[group.name] if name != FLOAT]
        if not others:
            return "float: its integer kernels have no price here"
        fastest = min(others, key=lambda other: other.ms)
        name, gained = fastest.precisions[group.name], plan.ms - fastest.ms
        if gained <= NOISE:
            return f"float: {name} with its conversions is {-gained:.3g} ms slower ({source})"
        return f"float for accuracy: {name} would save {gained:.3g} ms ({source})"
    other = _in_float(problem, plan, group)
    if other is None:
        return f"{chosen}: float has no price here ({source})"
    saved = other.ms - plan.ms
    if saved > NOISE:
        return f"{chosen}: saves {saved:.3g} ms against float, conversions included ({source})"
    more = "does not fit the budget" if not within(other, limits) else "loses nothing"
    return f"{chosen}: {-saved:.3g} ms slower than float, which {more} ({source})"


def _in_float(problem: Problem, plan: Assignment, group: SiteGroup) -> Assignment | None:
    """Return the plan with a group in float, None where it is already, or cannot be."""
    if plan.precisions[group.name] == FLOAT or FLOAT not in problem.choices[group.name]:
        return None
    return _with(problem, plan, group, FLOAT)


def _with(problem: Problem, plan: Assignment, group: SiteGroup, precision: str) -> Assignment:
    changed: Mapping[str, str] = {**plan.precisions, group.name: precision}
    return problem.assignment(changed)
