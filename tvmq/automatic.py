"""Choose the bits of every site by losses, by costs of a machine, and by real evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import tvm
from tvm import relax

from tvmq.calibrate.batches import Batch, samples_in
from tvmq.errors import InfeasibleBudgetError, UnsupportedModelError
from tvmq.formats import Quantization
from tvmq.one_thread import one_thread
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import FLOAT, CostTable, precision_name
from tvmq.plan.groups import SiteGroup, site_groups
from tvmq.plan.memory import moments
from tvmq.plan.options import Budget
from tvmq.plan.problem import EIGHT, Assignment, Limits, Problem
from tvmq.plan.program import solve
from tvmq.plan.reasons import explained, no_slower
from tvmq.plan.records import PlanReport, choices_of, evaluated_of
from tvmq.plan.search import Goal, Log, Outcome, search, uniform
from tvmq.plan.sensitivity import OF_ERRORS, Subject, sensitivities
from tvmq.plan_evaluation import Evaluation, Runnable, Sizes, Validation, log_key
from tvmq.prepared import FLOAT32, HELD, Prepared, Settings, few, prepare, uniform_numbers
from tvmq.progress import Progress, silent
from tvmq.spec import Precision
from tvmq.target import TargetProfile

# What products may have besides 8 bits and float; which of them has a price follows from the target.
CANDIDATES = (Precision(6, 8), Precision(4, 8), Precision(3, 8), Precision(2, 8))
LOSS_SAMPLES = 32
LEAST_HELD = 8  # samples: what fewer say is chance
SIZE_ROUNDS = 5  # searches with what code really takes
FINALS = 3  # plans that may be made in full before a drop is said to be out of reach

Costs = Callable[[Prepared, Sequence[Precision]], CostTable]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Bits by site, and why."""

    bits: Mapping[str, Precision | None]
    reasons: Mapping[str, str]
    report: PlanReport


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans that keep to a budget as far as the search can tell, the best first."""

    chosen: tuple[Chosen, ...]
    evaluation: Evaluation
    least_metric: float | None = None
    missed: list[tuple[Chosen, float]] = field(default_factory=list)

    def made(self, chosen: Chosen, mod: tvm.IRModule, compiled: object) -> PlanReport | None:
        """Return a plan's report with the metric of what was made of it, None where that drops too far.

        mod, compiled: see Evaluation.of_made. Raises InfeasibleBudgetError when there is no other plan.
        """
        if chosen.report.chosen_metric is None:
            return chosen.report  # nothing was limited, so nothing was evaluated
        metric = self.evaluation.of_made(mod, compiled)
        if self.least_metric is None or metric >= self.least_metric:
            return replace(chosen.report, final_metric=metric)
        self.missed.append((chosen, metric))
        if len(self.missed) < len(self.chosen):
            return None
        exact = chosen.report.float_metric or 0.0
        drops = ", ".join(
            f"{exact - final:.4g} (of {exact - (each.report.chosen_metric or 0.0):.4g} when it was compared)"
            for each, final in self.missed
        )
        raise InfeasibleBudgetError(
            f"max_drop={exact - self.least_metric:.4g}: made with the chosen preset, plans drop by more than "
            f"when they were compared, by {drops}; allow more, or take another preset"
        )


@one_thread()
def automatic(
    unbalanced: tvm.IRModule,
    batches: Sequence[Batch],
    profile: TargetProfile,
    budget: Budget,
    settings: Settings,
    costs: Costs,
    *,
    validation: Validation | None = None,
    runnable: Runnable | None = None,
    size_of: Sizes | None = None,
    progress: Progress = silent,
) -> Plans:
    """Return plans of the sites of a canonical module: one, or where a drop is limited the next best, too.

    validation: a model's metric, higher is better; None: agreement with float on samples kept for it.
    runnable: makes what validation is given; None: the reference. size_of: None: code takes no room.
    Raises InfeasibleBudgetError for a budget that no plan keeps to, UnsupportedModelError for one without a
    validation where no output is float.
    """
    measure = _measure(unbalanced, budget, validation)
    prepared = prepare(unbalanced, batches, settings, keep=validation is None, progress=progress)
    candidates = () if budget.wants_nothing else CANDIDATES
    names = (EIGHT, *map(precision_name, candidates))
    numbers = {name: uniform_numbers(prepared, name, progress) for name in names}
    problem = _problem(prepared, numbers, measure, candidates, costs, progress)
    groups = problem.groups
    evaluation = Evaluation(prepared, numbers, groups, validation, runnable)
    about = _About(budget, measure, profile.name, evaluation)
    if budget.wants_nothing:
        plan = no_slower(problem, solve(problem, Limits(), "ms"), Limits())
        return Plans((about.chosen(problem, plan, None, None),), evaluation)
    log = Log(budget.path, log_key(prepared, groups, evaluation.metric))
    floats = evaluation.of_float(log)
    least = None if budget.max_drop is None else floats - budget.max_drop
    goal = Goal(limits=budget.limits, least_metric=least)
    problem, outcome = _searched(problem, goal, evaluation, size_of, log, budget, settings.seed, progress)
    _require_enough(outcome, budget, floats)
    kept = [e for e in sorted(outcome.evaluated, key=goal.rank) if goal.reached(e)]
    best = kept[: 1 if goal.least_metric is None else FINALS]
    chosen = tuple(about.chosen(problem, each.plan, each.metric, outcome) for each in best)
    return Plans(chosen, evaluation, goal.least_metric)


def _problem(
    prepared: Prepared,
    numbers: Mapping[str, Quantization],
    measure: str,
    candidates: Sequence[Precision],
    costs: Costs,
    progress: Progress,
) -> Problem:
    """Return what there is to choose from."""
    groups = _groups(prepared, candidates)
    # Of samples that weights were fitted to, errors come out too small: most where a site has many inputs.
    held = sum(map(samples_in, prepared.held)) if prepared.judged_on == HELD else 0
    seen = prepared.held if held >= LEAST_HELD else prepared.fitted
    subject = Subject(prepared.mod, prepared.nodes, groups, numbers, few(seen, LOSS_SAMPLES))
    losses = sensitivities(subject, measure, seed=prepared.settings.seed, progress=progress)
    table = costs(prepared, candidates)
    alive = moments(prepared.nodes, prepared.formats, table.values, prepared.float_inputs)
    return Problem(groups, losses, table, alive)


def _groups(prepared: Prepared, candidates: Sequence[Precision]) -> tuple[SiteGroup, ...]:
    """Return the groups of a model's sites, with what they may take."""
    settings = prepared.settings
    base = assign_precisions(prepared.nodes, prepared.hash, ignored=settings.ignored)
    groups = site_groups(prepared.nodes, base, candidates)
    if not settings.strict:
        return groups
    return tuple(replace(g, choices=tuple(c for c in g.choices if c != FLOAT)) for g in groups)


def _measure(mod: tvm.IRModule, budget: Budget, validation: Validation | None) -> str:
    """Return the measure of losses: one of sites' own errors where a model has no float output to look at."""
    ty = mod["main"].ret_ty
    dtypes = [str(each.dtype) for each in (ty.fields if isinstance(ty, relax.TupleType) else [ty])]
    if FLOAT32 in dtypes:
        return budget.measure
    if validation is None and not budget.wants_nothing:
        raise UnsupportedModelError(
            f"model: its outputs are {' and '.join(dtypes)}, a float one is wanted to compare plans by; give "
            "a validation, or leave out what comes last (an argmax)"
        )
    return budget.measure if budget.measure in OF_ERRORS else OF_ERRORS[-1]


def _require_enough(outcome: Outcome, budget: Budget, floats: float) -> None:
    if not outcome.enough:
        raise InfeasibleBudgetError(
            f"max_drop={budget.max_drop:g}: the best of {len(outcome.evaluated)} plans within "
            f"{budget.limits} drops by {floats - outcome.best.metric:.4g} ({outcome.best.plan}); allow "
            "more of one of them, or evaluate more plans"
        )


def _searched(
    problem: Problem,
    goal: Goal,
    evaluation: Evaluation,
    size_of: Sizes | None,
    log: Log,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> tuple[Problem, Outcome]:
    """Return what a search ended with, and the problem with what code takes in it.

    How much that is depends on the plan: where the best turns out larger than was thought, the search is done
    again, in what is left of the time.
    """
    run: Callable[[Problem], Outcome] = partial(
        search,
        goal=goal,
        evaluate=evaluation.of_plan,
        log=log,
        minutes=budget.minutes,
        evaluations=budget.evaluations,
        seed=seed,
        progress=progress,
        began=time.monotonic(),
    )
    if size_of is None or budget.max_size_mb is None:
        return problem, run(problem)
    return _of_files(problem, evaluation, size_of, 1e6 * budget.max_size_mb, run)


def _of_files(
    problem: Problem,
    evaluation: Evaluation,
    size_of: Sizes,
    most: float,
    run: Callable[[Problem], Outcome],
) -> tuple[Problem, Outcome]:
    """Return what searches end with whose best plan's file has this many bytes at most, if any has."""
    without_code = problem
    problem = evaluation.with_code(problem, _of_like_size(problem, most), size_of)
    outcome = run(problem)
    for _ in range(SIZE_ROUNDS - 1):
        corrected = evaluation.with_code(problem, outcome.best.plan, size_of)
        missing = corrected.costs.fixed_bytes - problem.costs.fixed_bytes
        if outcome.best.plan.size + missing <= most:
            break
        problem = corrected
        try:
            outcome = run(problem)
        except InfeasibleBudgetError:
            # Every width brings code of its own: of a small model that may be more than it saves.
            few_kinds = of_two_widths(without_code, outcome.best.plan)
            problem = evaluation.with_code(few_kinds, solve(few_kinds, Limits(), "size"), size_of)
            outcome = run(problem)
    return problem, outcome


def _of_like_size(problem: Problem, size: float) -> Assignment:
    """Return the plan of one width nearest to so many bytes: what just fits is not to be found too large."""
    names = {name for choices in problem.choices.values() for name in choices} - {FLOAT}
    plans = [plan for name in sorted(names) if (plan := uniform(problem, name)) is not None]
    return min(plans or [solve(problem, Limits())], key=lambda plan: abs(plan.size - size))


def of_two_widths(problem: Problem, plan: Assignment) -> Problem:
    """Return a problem with 8 bits, the fewest bits of a plan, and float alone."""
    kept = {EIGHT, FLOAT, min(set(plan.precisions.values()) - {FLOAT}, default=EIGHT)}
    groups = tuple(
        replace(group, choices=tuple(c for c in group.choices if c in kept)) for group in problem.groups
    )
    return replace(problem, groups=groups)


@dataclass(frozen=True, slots=True)
class _About:
    """What every report of a search says alike."""

    budget: Budget
    measure: str
    target: str
    evaluation: Evaluation

    def chosen(
        self, problem: Problem, plan: Assignment, metric: float | None, outcome: Outcome | None
    ) -> Chosen:
        """Return a plan with its report."""
        reasons = explained(problem, plan, self.budget.limits)
        pareto, evaluated, ended = evaluated_of(outcome)
        report = PlanReport(
            target=self.target,
            device=problem.costs.device,
            threads=problem.costs.threads,
            limits=self.budget.limits,
            max_drop=self.budget.max_drop,
            measure=self.measure,
            metric=self.evaluation.metric if outcome else "",
            float_metric=self.evaluation.float_metric,
            chosen=plan,
            chosen_metric=metric,
            pareto=pareto,
            evaluated=evaluated,
            groups=choices_of(problem, plan, reasons),
            ended=ended,
        )
        return Chosen(self.evaluation.bits(plan), reasons, report)
