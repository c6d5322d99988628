"""Refine the steps of activations together by the error of the model's outputs (lapq.py).

LAPQ (Nahshan et al. 2019) moves the steps of weights too; here weights are solved afterwards, for the steps
that are found. The loss is that of a few calibration samples, weights being float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tvm import relax

from tvmq.calibrate.grids import FloatArray
from tvmq.calibrate.lapq import refine
from tvmq.formats import QuantParams
from tvmq.passes.rebuild import bindings
from tvmq.progress import Progress, silent
from tvmq.quantize.lockstep import evenly, rounded
from tvmq.quantize.model import Model
from tvmq.quantize.readers import Readers
from tvmq.quantize.steps import Steps
from tvmq.reference import Interpreter

Tensor = torch.Tensor

SAMPLES = 16


def joint_steps(
    model: Model, readers: Readers, steps: Steps, *, evaluations: int, progress: Progress = silent
) -> dict[str, QuantParams]:
    """Return the storage of every value whose scale is its own, of least output error; never worse.

    evaluations: of the loss, at most. Zero points stay, and so does what a requantize by a shift needs.
    """
    names = [name for name, own in steps.values.items() if own.dtype == "uint8" and readers.alone(name)]
    batches = evenly(model.batches, max(1, SAMPLES // max(1, len(model.batches[0][0]))))
    stream = _Stream(model, steps.copies)
    exact = [stream.outputs(batch, None) for batch in batches]

    def stored(scales: FloatArray) -> dict[str, QuantParams]:
        found = dict(steps.values)
        for name, scale in zip(names, scales, strict=True):
            tried = replace(found[name], scale=float(np.float32(scale)))
            if readers.by_a_shift(name, tried, found, steps.copies):
                found[name] = tried
        return found

    def loss(scales: FloatArray) -> float:
        values = stored(scales)
        return sum(_distance(stream.outputs(b, values), e) for b, e in zip(batches, exact, strict=True))

    start = np.array([steps.values[name].scale for name in names])
    return stored(refine(start, loss, evaluations=evaluations, progress=progress).scales)


class _Stream:
    """The module on one batch, values rounded to their storage; weights and biases as they are."""

    def __init__(self, model: Model, copies: Mapping[str, QuantParams]) -> None:
        self._main, self._formats, self._copies = model.mod["main"], model.formats, copies
        self._interpreter = Interpreter(model.mod)

    def outputs(
        self, batch: Sequence[Tensor], values: Mapping[str, QuantParams] | None
    ) -> tuple[Tensor, ...]:
        """Return the float outputs; values None: nothing is rounded."""
        env: dict[relax.Var, Any] = {}
        copies: dict[relax.Var, Tensor] = {}

        def keep(var: relax.Var, value: Any) -> None:
            own = None if values is None else values.get(var.name)
            env[var] = value if own is None else rounded(value, own)
            if own is not None and var.name in self._copies:
                copies[var] = rounded(env[var], self._copies[var.name])

        with torch.no_grad():
            for param, value in zip(self._main.params, batch, strict=True):
                keep(param, value)
            for step in bindings(self._main):
                reads_copy = step.var.name in self._formats.uint8_readers
                seen = {**env, **copies} if reads_copy else env
                keep(step.var, self._interpreter.evaluate(step.value, seen))
            found = self._interpreter.evaluate(self._main.body.body, env)
        return found if isinstance(found, tuple) else (found,)


def _distance(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the squared error over the energy, summed over float outputs."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.is_floating_point()]
    return sum(float((a - b).square().sum() / b.square().sum().clamp_min(1e-30)) for a, b in pairs)
