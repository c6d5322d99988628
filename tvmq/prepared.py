"""What all plans of a model start from: the balanced module, its statistics, and samples kept for judging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tvm

from tvmq.calibrate.batches import Batch, input_specs, samples_in
from tvmq.calibrate.calibration import Calibration, module_hash
from tvmq.calibrate.collect import collect
from tvmq.calibrate.stability import GROUPS
from tvmq.formats import Quantization
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import precision_of
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import SITE_KINDS, Nodes, index
from tvmq.plan.values import Value, values_of
from tvmq.progress import Progress, silent
from tvmq.quantize.choose import choose, gram_inputs
from tvmq.quantize.importance import row_importance, with_own_moments
from tvmq.quantize.model import Model
from tvmq.quantizer import balancing, formats_of, planned

FLOAT32 = "float32"
STORABLE = (*SITE_KINDS, "add", "bias")
HELD_OUT = 4  # of so many samples one is kept for evaluations, where the user gives no validation
HELD_SAMPLES = 32  # at most
HELD, FITTED = "held-out samples", "the calibration samples themselves: too few to hold any out"


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
    judged_on: str  # HELD or FITTED
    settings: Settings

    @property
    def hash(self) -> str:
        """Return what costs and plans of this module are bound to."""
        return module_hash(self.mod)

    @property
    def values(self) -> tuple[Value, ...]:
        """Return what passes between its sites."""
        specs = zip(self.nodes.parameters, input_specs(self.mod), strict=True)
        return values_of(self.nodes, {name: tuple(spec.shape) for name, spec in specs})

    @property
    def float_inputs(self) -> list[str]:
        """Return the names of its float inputs."""
        specs = zip(self.nodes.parameters, input_specs(self.mod), strict=True)
        return [name for name, spec in specs if spec.dtype == FLOAT32]


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
    fitted, held, judged_on = split(batches) if keep else (batches, batches, FITTED)
    plan, _ = planned(unbalanced, ignored=settings.ignored)
    balance = balancing(unbalanced, fitted, plan=plan, observer=settings.observer, progress=progress)
    mod = balance(unbalanced)
    nodes = index(mod)
    formats = formats_of(nodes, plan)
    # Whatever a site left in float may make or read as integers; not masks, which are of no such kind.
    made = {name for name, node in nodes.by_name.items() if node.is_float and node.kind in STORABLE}
    specs = zip(nodes.parameters, input_specs(mod), strict=True)
    wanted = made | {name for name, spec in specs if spec.dtype == FLOAT32} | formats.values.keys()
    grams = gram_inputs(nodes, formats)
    sites = with_own_moments(Model(mod, nodes, formats, fitted).sites())
    seen = collect(
        mod,
        fitted,
        values=wanted.__contains__,
        gram_inputs=grams,
        importance=row_importance(mod, sites, fitted, settings.seed, progress),
        groups=GROUPS,
        progress=progress,
    )
    return Prepared(mod, nodes, formats, seen, fitted, few(held, HELD_SAMPLES), judged_on, settings)


def split(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch], str]:
    """Return batches to fit numbers to, others to judge by, and whether these are HELD or FITTED.

    Of fewer than HELD_OUT batches, samples are shared out, and batches of either kind filled up with their
    own first samples.
    """
    if len(batches) >= HELD_OUT:
        fitted = [batch for at, batch in enumerate(batches) if (at + 1) % HELD_OUT]
        return fitted, batches[HELD_OUT - 1 :: HELD_OUT], HELD
    sizes = {len(tensor) if tensor.ndim else 0 for batch in batches for tensor in batch}
    size = sizes.pop()
    if sizes or size * len(batches) < HELD_OUT:
        return batches, batches, FITTED
    columns = [torch.cat(list(tensors)) for tensors in zip(*batches, strict=True)]
    places = np.arange(size * len(batches))
    kept = (places + 1) % HELD_OUT == 0
    return _batched(columns, places[~kept], size), _batched(columns, places[kept], size), HELD


def _batched(columns: Sequence[torch.Tensor], places: np.ndarray, size: int) -> list[Batch]:
    """Return these samples in batches of the model's size."""
    filled = np.resize(places, (math.ceil(len(places) / size), size))
    return [tuple(column[torch.from_numpy(row)] for column in columns) for row in filled]


def few(batches: Sequence[Batch], samples: int) -> Sequence[Batch]:
    """Return batches of about so many samples, from all over the data."""
    size = samples_in(batches[0])
    count = min(len(batches), max(1, samples // size))
    return [batches[i * len(batches) // count] for i in range(count)]


def uniform_numbers(prepared: Prepared, name: str, progress: Progress = silent) -> Quantization:
    """Return the numbers of the model in one precision, from statistics."""
    precision, settings = precision_of(name), prepared.settings
    assert precision is not None
    plan = assign_precisions(prepared.nodes, prepared.hash, ignored=settings.ignored, bits=precision)
    return choose(
        prepared.nodes,
        formats_of(prepared.nodes, plan),
        prepared.seen,
        method=settings.observer,
        requantize=settings.requantize,
        progress=progress,
    )
