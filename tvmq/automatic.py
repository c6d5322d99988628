"""Choose the bits of every site by losses, by costs of a machine, and by real evaluations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax

from tvmq import reference
from tvmq.calibrate.batches import Batch, input_specs
from tvmq.calibrate.calibration import Calibration, module_hash
from tvmq.calibrate.collect import collect
from tvmq.calibrate.stability import GROUPS
from tvmq.environment import versions
from tvmq.errors import InfeasibleBudgetError, UnsupportedModelError
from tvmq.formats import Quantization
from tvmq.inputs import checked_inputs, is_torch
from tvmq.one_thread import one_thread
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import FLOAT, CostTable, precision_name, precision_of
from tvmq.plan.divergence import agreement
from tvmq.plan.formats import Formats
from tvmq.plan.groups import SiteGroup, site_groups
from tvmq.plan.memory import moments
from tvmq.plan.nodes import MULTIPLYING, SITE_KINDS, Nodes, index
from tvmq.plan.options import Budget
from tvmq.plan.problem import EIGHT, Assignment, Limits, Problem
from tvmq.plan.program import solve
from tvmq.plan.reasons import explained, no_slower
from tvmq.plan.records import PlanReport, choices_of, evaluated_of
from tvmq.plan.search import Goal, Log, Outcome, checked_metric, search
from tvmq.plan.sensitivity import OF_ERRORS, Subject, sensitivities
from tvmq.plan.values import Value, values_of
from tvmq.progress import Progress, silent
from tvmq.quantize.choose import choose, gram_inputs, ranges
from tvmq.quantizer import balanced, formats_of, planned
from tvmq.spec import Plan, Precision, TensorSpec
from tvmq.target import TargetProfile
from tvmq.tune.database import digest_of

# What products may have besides 8 bits and float; which of them has a price follows from the target.
CANDIDATES = (Precision(4, 8), Precision(3, 8), Precision(2, 8))
FLOAT32 = "float32"
STORABLE = (*SITE_KINDS, "add", "bias")
HELD_OUT = 4  # of so many samples one is kept for evaluations, where the user gives no validation
LOSS_SAMPLES, HELD_SAMPLES = 32, 32
AGREEMENT = "agreement with float on held-out samples"
VALIDATION = "validation"

Validation = Callable[[Any], float]
# What validation is given: a model in the numbers of a plan, called like a compiled one.
Runnable = Callable[["Prepared", Plan, Quantization], Any]
Costs = Callable[["Prepared", Sequence[Precision]], CostTable]
Sizes = Callable[["Prepared", Plan, Quantization], int]  # bytes of the artifact
SIZE_ROUNDS = 3  # searches with what code really takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How numbers are chosen while plans are compared: from statistics, whatever the preset is."""

    ignored: tuple[str, ...]
    requantize: str
    observer: str
    seed: int
    strict: bool  # no site stays in float that has an integer kernel


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A balanced model of 8 bits with the statistics of all its values, and its data."""

    mod: tvm.IRModule
    nodes: Nodes
    formats: Formats
    seen: Calibration
    fitted: Sequence[Batch]
    held: Sequence[Batch]
    settings: Settings

    @property
    def values(self) -> tuple[Value, ...]:
        """Return what passes between its sites."""
        return values_of(self.nodes, {name: tuple(spec.shape) for name, spec in _inputs(self)})

    @property
    def hash(self) -> str:
        """Return what costs and plans of this module are bound to."""
        return module_hash(self.mod)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Bits by site, and why."""

    bits: Mapping[str, Precision | None]
    reasons: Mapping[str, str]
    report: PlanReport


class ReferenceModel:
    """A module as the reference computes it, called like a compiled model."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self._mod = mod
        self.inputs: tuple[TensorSpec, ...] = input_specs(mod)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; NumPy arrays, or torch tensors if any input is one."""
        arrays = checked_inputs(self.inputs, args, kwargs)
        results = reference.run(self._mod, [torch.from_numpy(np.array(array)) for array in arrays])
        if not any(is_torch(value) for value in (*args, *kwargs.values())):
            results = tuple(result.numpy() for result in results)  # type: ignore[misc]
        return results[0] if len(results) == 1 else results


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
) -> Chosen:
    """Return the bits of every site of a canonical module.

    validation: a model's metric, higher is better; None: agreement with float on samples kept for it.
    runnable: makes what validation is given; None: the reference. size_of: None: code takes no room.
    Raises InfeasibleBudgetError for a budget that no plan keeps to, UnsupportedModelError for one without a
    validation where no output is float.
    """
    measure = _measure(unbalanced, budget, validation)
    prepared = prepare(unbalanced, batches, settings, keep=validation is None, progress=progress)
    names = [EIGHT] if budget.wants_nothing else [EIGHT, *map(precision_name, CANDIDATES)]
    numbers = {name: uniform_numbers(prepared, name, progress) for name in names}
    base = assign_precisions(prepared.nodes, prepared.hash, ignored=settings.ignored)
    groups = site_groups(prepared.nodes, base, [] if budget.wants_nothing else CANDIDATES)
    if settings.strict:
        groups = tuple(replace(g, choices=tuple(c for c in g.choices if c != FLOAT)) for g in groups)
    subject = Subject(prepared.mod, prepared.nodes, groups, numbers, _few(prepared.fitted, LOSS_SAMPLES))
    losses = sensitivities(subject, measure, seed=settings.seed, progress=progress)
    table = costs(prepared, [] if budget.wants_nothing else CANDIDATES)
    floats_in = [name for name, spec in _inputs(prepared) if spec.dtype == FLOAT32]
    alive = moments(prepared.nodes, prepared.formats, table.values, floats_in)
    problem = Problem(groups, losses, table, alive)
    evaluation = _Evaluation(prepared, numbers, groups, validation, runnable)
    if budget.wants_nothing:
        plan = no_slower(problem, solve(problem, Limits(), "ms"), Limits())
        return _chosen(problem, plan, budget, measure, profile, None, evaluation)
    log = Log(budget.path, _key(prepared, groups, evaluation.metric))
    floats = evaluation.of_float(log)
    least = None if budget.max_drop is None else floats - budget.max_drop
    goal = Goal(limits=budget.limits, least_metric=least)
    if size_of is not None:
        problem = evaluation.with_code(problem, uniform_plan(problem), size_of)
    for _ in range(SIZE_ROUNDS):
        outcome = search(
            problem,
            goal,
            evaluation.of_plan,
            log=log,
            minutes=budget.minutes,
            evaluations=budget.evaluations,
            seed=settings.seed,
            progress=progress,
        )
        if size_of is None or budget.max_size_mb is None:
            break
        priced = problem.costs.fixed_bytes
        corrected = evaluation.with_code(problem, outcome.best.plan, size_of)
        missing = corrected.costs.fixed_bytes - priced
        if outcome.best.plan.size + missing <= 1e6 * budget.max_size_mb:
            break
        problem = corrected
    if not outcome.enough:
        raise InfeasibleBudgetError(
            f"max_drop={budget.max_drop:g}: the best of {len(outcome.evaluated)} plans within "
            f"{budget.limits} drops by {floats - outcome.best.metric:.4g} ({outcome.best.plan}); allow "
            "more of one of them, or evaluate more plans"
        )
    return _chosen(problem, outcome.best.plan, budget, measure, profile, outcome, evaluation)


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


def prepare(
    unbalanced: tvm.IRModule,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    keep: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Return a canonical module balanced for 8 bits, with statistics of all that a plan may store.

    keep: leave some samples out of all that, for evaluations.
    """
    held = batches[HELD_OUT - 1 :: HELD_OUT] if keep and len(batches) >= HELD_OUT else batches
    fitted = [b for i, b in enumerate(batches) if (i + 1) % HELD_OUT] if held is not batches else batches
    plan, _ = planned(unbalanced, ignored=settings.ignored)
    mod = balanced(unbalanced, fitted, plan=plan, observer=settings.observer, progress=progress)
    nodes = index(mod)
    formats = formats_of(nodes, plan)
    # Whatever a site left in float may make or read as integers; not masks, which are of no such kind.
    made = {name for name, node in nodes.by_name.items() if node.is_float and node.kind in STORABLE}
    read = {
        name for name, spec in zip(nodes.parameters, input_specs(mod), strict=True) if spec.dtype == FLOAT32
    }
    wanted = made | read | formats.values.keys()
    grams = gram_inputs(nodes, formats)
    seen = collect(
        mod, fitted, values=wanted.__contains__, gram_inputs=grams, groups=GROUPS, progress=progress
    )
    return Prepared(mod, nodes, formats, seen, fitted, _few(held, HELD_SAMPLES), settings)


class _Evaluation:
    """The metric of plans, their numbers put together from those of whole models in one precision."""

    def __init__(
        self,
        prepared: Prepared,
        numbers: Mapping[str, Quantization],
        groups: Sequence[SiteGroup],
        validation: Validation | None,
        runnable: Runnable | None,
    ) -> None:
        self._prepared, self._numbers, self._groups = prepared, numbers, groups
        self._validation, self._runnable = validation, runnable
        self.metric = AGREEMENT if validation is None else VALIDATION
        self.float_metric: float | None = None
        self._wanted: list[tuple[torch.Tensor, ...]] = []

    def of_float(self, log: Log) -> float:
        """Return the metric of the float model."""
        at = (FLOAT,)
        if at not in log.known:
            model = self._prepared.mod
            log.add(
                at,
                1.0 if self._validation is None else checked_metric(self._validation(ReferenceModel(model))),
            )
        self.float_metric = log.known[at]
        return self.float_metric

    def of_plan(self, plan: Assignment) -> float:
        """Return the metric of a plan."""
        p = self._prepared
        assigned, numbers = self._assigned(plan)
        if self._validation is None:
            return self._agreement(InsertQdq(numbers)(p.mod))
        if self._runnable is not None:
            return self._validation(self._runnable(p, assigned, numbers))
        return self._validation(ReferenceModel(InsertQdq(numbers)(p.mod)))

    def with_code(self, problem: Problem, plan: Assignment, size_of: Sizes) -> Problem:
        """Return a problem whose fixed bytes are those that this plan's artifact has beside its weights."""
        missing = max(size_of(self._prepared, *self._assigned(plan)) - plan.size, 0)
        costs = replace(problem.costs, fixed_bytes=problem.costs.fixed_bytes + missing)
        return replace(problem, costs=costs)

    def _assigned(self, plan: Assignment) -> tuple[Plan, Quantization]:
        p = self._prepared
        assigned = assign_precisions(p.nodes, p.hash, ignored=p.settings.ignored, bits=self.bits(plan))
        return assigned, self._composed(plan, formats_of(p.nodes, assigned))

    def bits(self, plan: Assignment) -> dict[str, Precision | None]:
        """Return the precision of each site of the groups."""
        return {
            site: precision_of(plan.precisions[group.name]) for group in self._groups for site in group.sites
        }

    def _agreement(self, mod: tvm.IRModule) -> float:
        held = self._prepared.held
        if not self._wanted:
            self._wanted = [_floats(reference.run(self._prepared.mod, batch)) for batch in held]
        pairs = zip(self._wanted, held, strict=True)
        total = sum(agreement(wanted, _floats(reference.run(mod, batch))) for wanted, batch in pairs)
        return total / sum(len(wanted[0]) for wanted in self._wanted)

    def _composed(self, plan: Assignment, formats: Formats) -> Quantization:
        p = self._prepared
        stored = ranges(p.nodes, formats, p.seen, method=p.settings.observer)
        at = {site: plan.precisions[group.name] for group in self._groups for site in group.sites}
        weights, biases = {}, {}
        for name, node in p.nodes.by_name.items():
            if node.kind in MULTIPLYING and name in formats.integer:
                weights[name] = self._numbers[at[name]].weights[name]
            source = node.inputs[0] if node.kind == "bias" else ""
            if source in formats.integer and name in self._numbers[at[source]].biases:
                biases[name] = self._numbers[at[source]].biases[name]
        return replace(stored, weights=weights, biases=biases)


def uniform_plan(problem: Problem) -> Assignment:
    """Return the plan of 8 bits wherever there are such."""
    choices = {group.name: problem.choices[group.name] for group in problem.groups}
    return problem.assignment(
        {name: EIGHT if EIGHT in known else next(iter(known)) for name, known in choices.items()}
    )


def uniform_numbers(prepared: Prepared, name: str, progress: Progress = silent) -> Quantization:
    """Return the numbers of the model in one precision, from statistics."""
    precision, settings = precision_of(name), prepared.settings
    assert precision is not None
    plan = assign_precisions(prepared.nodes, prepared.hash, ignored=settings.ignored, bits=precision)
    formats = formats_of(prepared.nodes, plan)
    return choose(
        prepared.nodes,
        formats,
        prepared.seen,
        method=settings.observer,
        requantize=settings.requantize,
        progress=progress,
    )


def _chosen(
    problem: Problem,
    plan: Assignment,
    budget: Budget,
    measure: str,
    profile: TargetProfile,
    outcome: Outcome | None,
    evaluation: _Evaluation,
) -> Chosen:
    reasons = explained(problem, plan, budget.limits)
    pareto, evaluated, ended = evaluated_of(outcome)
    report = PlanReport(
        target=profile.name,
        device=problem.costs.device,
        threads=problem.costs.threads,
        limits=budget.limits,
        measure=measure,
        metric=evaluation.metric,
        float_metric=evaluation.float_metric,
        chosen=plan,
        chosen_metric=None if outcome is None else outcome.best.metric,
        pareto=pareto,
        evaluated=evaluated,
        groups=choices_of(problem, plan, reasons),
        ended=ended,
    )
    return Chosen(evaluation.bits(plan), reasons, report)


def _key(prepared: Prepared, groups: Sequence[SiteGroup], metric: str) -> str:
    """Return all that evaluations depend on, but for what the user's function does."""
    s = prepared.settings
    held = hashlib.sha256()
    for tensor in (tensor for batch in prepared.held for tensor in batch):
        held.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        held.update(np.ascontiguousarray(tensor.numpy()).data)
    parts: list[Any] = [prepared.hash, prepared.seen.data_hash, held.hexdigest(), metric]
    parts += [s.ignored, s.requantize, s.observer, digest_of(_sources()), versions()]
    parts += [[group.name, group.sites] for group in groups]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@cache
def _sources() -> tuple[Path, ...]:
    return tuple(sorted(Path(__file__).parent.rglob("*.py")))


def _few(batches: Sequence[Batch], samples: int) -> Sequence[Batch]:
    """Return batches of about so many samples, from all over the data."""
    size = len(batches[0][0]) if batches[0][0].ndim else 1
    count = min(len(batches), max(1, samples // size))
    return [batches[i * len(batches) // count] for i in range(count)]


def _floats(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(value for value in outputs if value.dtype == torch.float32)


def _inputs(prepared: Prepared) -> list[tuple[str, TensorSpec]]:
    return list(zip(prepared.nodes.parameters, input_specs(prepared.mod), strict=True))
