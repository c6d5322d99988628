"""Numbers chosen on what each site really sees: the stages after statistics, in order.

Activation steps are refined while weights are float (steps.py); weights are solved for quantized inputs and
biases take up what is left (sequential.py); in the slow mode, the rounding of whole units learns (adapt.py).
"""

from __future__ import annotations

import torch

from tvmq.formats import Quantization
from tvmq.progress import Progress, silent
from tvmq.quantize.adapt import Adapt
from tvmq.quantize.importance import row_importance, shown_rows, squared_gradients
from tvmq.quantize.joint import joint_steps
from tvmq.quantize.model import Model
from tvmq.quantize.output_steps import CRITERIA, OutputSteps
from tvmq.quantize.presets import Preset
from tvmq.quantize.readers import Readers
from tvmq.quantize.sequential import Sequential
from tvmq.quantize.steps import Steps


def refined(
    model: Model,
    numbers: Quantization,
    preset: Preset,
    *,
    power_of_two: bool,
    seed: int,
    observer: str = "mse",
    progress: Progress = silent,
) -> Quantization:
    """Return numbers with refined steps, weights and biases; observer as for compile."""
    readers = Readers(model.nodes, model.formats, model.images())
    steps = _steps(model, readers, numbers, observer, seed, progress)
    if preset.steps:
        model.lockstep(progress, "steps").walk(steps)
    if preset.joint:
        steps.values |= joint_steps(model, readers, steps, evaluations=preset.joint, progress=progress)
    stretches = model.units() if preset.adapt_steps else ()
    results = {var.name: model.nodes.by_name[var.name] for unit in stretches for var in unit.results}
    importance: dict[str, torch.Tensor] = {}
    shown: dict[str, torch.Tensor] = {}
    if preset.importance:
        shown = shown_rows(model.mod, model.sites(), model.walked(), seed, progress)
        importance = row_importance(model.mod, model.sites() | results, model.batches, seed, progress)
    stored = steps.values, steps.copies
    solved = Sequential(
        model.nodes,
        model.formats,
        *stored,
        power_of_two=power_of_two,
        importance=importance,
        shown=shown,
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
            images=model.images(),
            steps=preset.adapt_steps,
            seed=seed,
        )
        model.lockstep(progress, "adapt").walk(adapt)
        weights = adapt.weights
    return Quantization(
        *stored,
        numbers.constants,
        {**numbers.weights, **weights},
        {**numbers.biases, **solved.biases},
        numbers.uint8_readers,
        numbers.left_float,
    )


def _steps(
    model: Model, readers: Readers, numbers: Quantization, observer: str, seed: int, progress: Progress
) -> Steps:
    """Return the visitor that refines activation steps."""
    criterion = CRITERIA.get(observer)
    if criterion is None:
        return Steps(model.formats, readers, numbers.values, numbers.also_uint8)
    gradients: dict[str, torch.Tensor] = {}
    if observer == "fisher":
        gradients = squared_gradients(model.mod, model.sites(), model.batches, seed, progress)
    stored = numbers.values, numbers.also_uint8
    return OutputSteps(model.nodes, model.formats, readers, *stored, criterion, gradients)
