"""What plans are really worth: a user's metric, or agreement with float on samples kept for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm

from tvmq import reference
from tvmq.calibrate.batches import Batch, samples_in
from tvmq.environment import default_threads, versions
from tvmq.formats import Quantization
from tvmq.one_thread import one_thread
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import FLOAT, precision_of
from tvmq.plan.divergence import agreement, likeness
from tvmq.plan.formats import Formats
from tvmq.plan.groups import SiteGroup
from tvmq.plan.nodes import MULTIPLYING
from tvmq.plan.problem import Assignment, Problem
from tvmq.plan.search import Log, checked_metric
from tvmq.prepared import Prepared
from tvmq.quantize.choose import ranges
from tvmq.quantizer import formats_of
from tvmq.reference_model import ReferenceModel
from tvmq.spec import Plan, Precision
from tvmq.tune.database import digest_of

VALIDATION = "validation"
WORST = -1e30  # stands for the agreement of outputs that are no numbers

Validation = Callable[[Any], float]
# What validation is given: a model in the numbers of a plan, called like a compiled one.
Runnable = Callable[[Prepared, Plan, Quantization], Any]
Sizes = Callable[[Prepared, Plan, Quantization], int]  # bytes of the artifact


class Evaluation:
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
        self.float_metric: float | None = None

    @cached_property
    def metric(self) -> str:
        """Return what the numbers are."""
        if self._validation is not None:
            return VALIDATION
        return f"agreement with float ({likeness(self._wanted[0])}) on {self._prepared.judged_on}"

    @cached_property
    def _wanted(self) -> list[tuple[torch.Tensor, ...]]:
        return outputs_of(self._prepared.mod, self._prepared.held)

    def of_float(self, log: Log) -> float:
        """Return the metric of the float model."""
        at = (FLOAT,)
        if at not in log.known:
            log.add(at, self.of_module(self._prepared.mod) if self._validation else 1.0)
        self.float_metric = log.known[at]
        return self.float_metric

    def of_plan(self, plan: Assignment) -> float:
        """Return the metric of a plan."""
        p = self._prepared
        assigned, numbers = self.assigned(plan)
        if self._validation is None or self._runnable is None:
            return self.of_module(InsertQdq(numbers)(p.mod))
        return self._validation(self._runnable(p, assigned, numbers))

    def of_module(self, mod: tvm.IRModule) -> float:
        """Return the metric of a module, as the reference computes it."""
        if self._validation is None:
            return self._agreement(mod)
        return checked_metric(self._validation(ReferenceModel(mod)))

    def of_made(self, mod: tvm.IRModule, compiled: Any) -> float:
        """Return the metric of what was made of a plan in the end.

        mod: at level qdq. compiled: None where this machine cannot run it.
        """
        if self._validation is None or compiled is None:
            return self.of_module(mod)
        return checked_metric(self._validation(compiled))

    def with_code(self, problem: Problem, plan: Assignment, size_of: Sizes) -> Problem:
        """Return a problem whose fixed bytes are those that this plan's artifact has beside its weights."""
        missing = max(size_of(self._prepared, *self.assigned(plan)) - plan.size, 0)
        costs = replace(problem.costs, fixed_bytes=problem.costs.fixed_bytes + missing)
        return replace(problem, costs=costs)

    def assigned(self, plan: Assignment) -> tuple[Plan, Quantization]:
        """Return a plan by site, and its numbers."""
        p = self._prepared
        assigned = assign_precisions(p.nodes, p.hash, ignored=p.settings.ignored, bits=self.bits(plan))
        return assigned, self._composed(plan, formats_of(p.nodes, assigned))

    def bits(self, plan: Assignment) -> dict[str, Precision | None]:
        """Return the precision of each site of the groups."""
        return {
            site: precision_of(plan.precisions[group.name]) for group in self._groups for site in group.sites
        }

    def _agreement(self, mod: tvm.IRModule) -> float:
        pairs = zip(self._wanted, outputs_of(mod, self._prepared.held), strict=True)
        total = sum(agreement(wanted, found) for wanted, found in pairs)
        found = total / sum(map(samples_in, self._wanted))
        return found if math.isfinite(found) else WORST

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


def outputs_of(
    mod: tvm.IRModule, batches: Sequence[Batch], workers: int | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """Return the outputs of batches by the reference, in order; workers, by default one per core, share them.

    Each computes with one of torch's threads, so that their number changes no bit.
    """
    several = workers or min(len(batches), default_threads())
    with one_thread(), ThreadPoolExecutor(several, "tvmq.reference", torch.set_num_threads, (1,)) as pool:
        return list(pool.map(lambda batch: _floats(reference.run(mod, batch)), batches))


def log_key(prepared: Prepared, groups: Sequence[SiteGroup], metric: str) -> str:
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


def _floats(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(value for value in outputs if value.dtype == torch.float32)
