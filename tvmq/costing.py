"""What the sites of a model cost on a machine, from the float model on: what `tvmq cost` shows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm

from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.calibrate.calibration import module_hash
from tvmq.cost.model_works import Subject
from tvmq.cost.predict import HeldOut, held_out
from tvmq.cost.table import cost_table, measurable, open_store
from tvmq.environment import default_threads, require_tvm
from tvmq.errors import CalibrationError
from tvmq.one_thread import one_thread
from tvmq.plan.cost_table import CostTable
from tvmq.plan.nodes import index
from tvmq.progress import Progress, silent
from tvmq.quantizer import NO_CALIBRATION, balancing, canonical, formats_of, observe, planned
from tvmq.record import Record
from tvmq.reference import require_operators
from tvmq.schedule.kernel_table import NO_DECISIONS
from tvmq.spec import Precision
from tvmq.target import load_profile
from tvmq.tune.options import Tune
from tvmq.tune.tuner import prepare

DEFAULT_PRECISIONS = ("w4a8",)


@dataclass(frozen=True, slots=True)
class Costs(Record):
    """The costs of a model, and how well kernels that are not measured would be predicted."""

    table: CostTable
    held_out: HeldOut | None  # None: nothing was asked, or too few kernels are known


def costs(
    model: Any,
    target: Any = "native",
    *,
    example_inputs: Sequence[Any] | None = None,
    calibration: Any = None,
    bits: Iterable[int | str] = DEFAULT_PRECISIONS,
    threads: int | None = None,
    store: str | os.PathLike[str] | None = None,
    measure: bool = True,
    tune: Tune | None = None,
    progress: Progress = silent,
) -> Costs:
    """Return what each site costs in float, W8A8 and bits; model, target and calibration as for compile.

    store: a file of JSON lines of what was measured, in a folder that exists; None: costs.jsonl in the user's
    cache folder. measure: time here what it lacks. Without, and for a target that this machine cannot run,
    that is predicted from what the store holds, or estimated from the target's profile; the table says which.
    tune: price the decisions that its database holds, instead of the default ones; nothing is tuned here.

    Raises UsageError, CalibrationError, UnsupportedModelError or EnvironmentMismatchError (tvmq.errors).
    """
    require_tvm()
    precisions = [Precision.of(each) for each in bits]
    if calibration is None:
        raise CalibrationError(NO_CALIBRATION)
    profile = load_profile(target)
    threads = threads or default_threads()
    here = measurable(profile)
    opened = open_store(store, profile, threads, measure=measure and here)
    known = NO_DECISIONS if tune is None else prepare(profile, replace(tune, trials=0), threads).decisions
    found = subject(canonical(model, example_inputs, progress=progress), calibration, progress=progress)
    table = cost_table(
        found,
        profile,
        precisions,
        opened,
        threads=threads,
        measure=measure and here,
        decisions=known,
        progress=progress,
    )
    return Costs(table, held_out(opened.lines, profile) if opened.lines else None)


@one_thread()
def subject(mod: tvm.IRModule, calibration: Any, *, progress: Progress = silent) -> Subject:
    """Return what costs are asked of, for a canonical module."""
    require_operators(mod)
    batches = list(as_batches(calibration, input_specs(mod)))
    plan, _ = planned(mod)
    even = balancing(mod, batches, plan=plan, progress=progress)(mod)
    nodes = index(even)
    seen = observe(even, formats_of(nodes, plan), batches, {}, progress=progress)
    return Subject(even, nodes, seen, module_hash(mod))
