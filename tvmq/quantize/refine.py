"""Numbers chosen on what each site really sees: the stages after statistics, in order.

Activation steps are refined while weights are float (steps.py); weights are solved for quantized inputs and
biases take up what is left (sequential.py); in the slow mode, the rounding of whole units learns (adapt.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import tvm

from tvmq.formats import Quantization
from tvmq.plan.formats import Formats, swallowed
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.progress import Progress, silent
from tvmq.quantize.adapt import Adapt
from tvmq.quantize.importance import row_importance
from tvmq.quantize.lockstep import Lockstep, samples_within
from tvmq.quantize.presets import Preset
from tvmq.quantize.sequential import Sequential
from tvmq.quantize.steps import Steps
from tvmq.quantize.units import Unit, units


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A balanced canonical module, what it holds, and what it is calibrated on."""

    mod: tvm.IRModule
    nodes: Nodes
    formats: Formats
    batches: Sequence[Sequence[torch.Tensor]]

    def sites(self) -> dict[str, Node]:
        """Return the sites that multiply in integers."""
        return {
            name: node
            for name, node in self.nodes.by_name.items()
            if node.kind in MULTIPLYING and name in self.formats.integer
        }

    def units(self) -> tuple[Unit, ...]:
        """Return the units of sites that are rounded together."""
        goes_on = swallowed(self.nodes, self.formats.integer)
        return units(self.mod["main"], self.sites().__contains__, goes_on.__contains__)

    def lockstep(self, progress: Progress, stage: str) -> Lockstep:
        """Return a walk over as many batches as fit in memory."""
        most = samples_within(self.mod["main"])
        stored, readers = self.formats.values.__contains__, self.formats.uint8_readers.__contains__
        return Lockstep(
            self.mod,
            self.nodes,
            self.batches[:most],
            stored=stored,
            reads_copy=readers,
            progress=lambda done, total: progress(stage, done, total),
        )


def refined(
    model: Model,
    numbers: Quantization,
    preset: Preset,
    *,
    power_of_two: bool,
    seed: int,
    progress: Progress = silent,
) -> Quantization:
    """Return numbers with refined steps, weights and biases."""
    steps = Steps(model.nodes, model.formats, numbers.values, numbers.also_uint8)
    if preset.steps:
        model.lockstep(progress, "steps").walk(steps)
    stretches = model.units() if preset.adapt_steps else ()
    counted = model.sites() | {unit.result.name: model.nodes.by_name[unit.result.name] for unit in stretches}
    importance = row_importance(model.mod, counted, model.batches, seed) if preset.importance else {}
    solved = Sequential(
        model.nodes,
        model.formats,
        steps.values,
        steps.copies,
        power_of_two=power_of_two,
        importance=importance,
        compensate=preset.compensate,
    )
    model.lockstep(progress, "weights").walk(solved)
    weights = solved.weights
    if preset.adapt_steps:
        adapt = Adapt(
            solved,
            stretches,
            reads_copy=model.formats.uint8_readers.__contains__,
            importance=importance,
            steps=preset.adapt_steps,
            seed=seed,
        )
        model.lockstep(progress, "adapt").walk(adapt)
        weights = adapt.weights
    return replace(
        numbers,
        values=steps.values,
        also_uint8=steps.copies,
        weights={**numbers.weights, **weights},
        biases={**numbers.biases, **solved.biases},
    )
