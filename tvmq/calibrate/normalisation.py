"""Compare how inputs are scaled with what the model was trained on.

A batch norm keeps mean and variance of what it saw in training. If the first one of an imported model (later,
it is folded into the convolution before it) sees values of another size, and by one factor in all channels,
the inputs are scaled otherwise than in training. A model that tells nothing is held to what is usual: pixels
in 0..255 or 0..1 where the model does not scale them itself are worth a question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from tvm import relax

from tvmq.calibrate.findings import Finding, Kind
from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, bindings, op_name, used_vars
from tvmq.reference import Interpreter
from tvmq.spec import TensorSpec

Batch = Sequence[torch.Tensor]
Floats = npt.NDArray[np.float64]

MOST_BATCHES = 16
DEEPEST = 12  # operators between an input and the batch norm that speaks of it
# A few photos, or white noise, differ by less than SUSPECT as a whole, or by no one factor.
SUSPECT = math.log2(1.8)  # octaves, median over channels
ALIKE = 1.0  # octaves between the quartiles of the channels
GROSS = 3.0  # octaves: with or without one factor
SMALLEST_IMAGE = 16  # pixels per side
OWN_SCALING = ("subtract", "add", "multiply", "divide", "nn.batch_norm")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The standard deviations that a batch norm saw, over those that it saw in training, in octaves [C]."""

    norm: str
    octaves: Floats

    @property
    def factor(self) -> float:
        """Return by what factor the inputs are too large, by the median of the channels."""
        return float(2 ** np.median(self.octaves))

    @property
    def suspicious(self) -> bool:
        """Tell whether the inputs' scaling is the likely cause."""
        low, middle, high = np.quantile(self.octaves, (0.25, 0.5, 0.75))
        return bool(abs(middle) > GROSS or (abs(middle) > SUSPECT and high - low < ALIKE))


def scaling_findings(
    mod: tvm.IRModule, specs: Sequence[TensorSpec], batches: Sequence[Batch], *, prepared: str = ""
) -> tuple[Finding, ...]:
    """Return what looks wrong with the scaling of the inputs of an imported module (level float).

    prepared: how tvmq itself made the inputs of photos, "" if others made them.
    """
    sizes = norm_sizes(mod, batches[:MOST_BATCHES])
    if sizes is not None:
        return (_by_training(sizes, prepared),) if sizes.suspicious else ()
    if prepared:  # and so the user chose it
        return ()
    return tuple(_by_custom(mod, specs, batches[:MOST_BATCHES]))


def norm_sizes(mod: tvm.IRModule, batches: Sequence[Batch]) -> Sizes | None:
    """Return what the first batch norm of main says of the inputs; None if none near them was trained."""
    func = mod["main"]
    values = {binding.var: binding.value for binding in bindings(func)}
    for var, call in values.items():
        if op_name(call) != "nn.batch_norm" or bool(call.attrs.training):
            continue
        mean, variance = (array_of(argument) for argument in call.args[3:5])
        needed = _needed(call.args[0], values)
        fresh = mean is None or variance is None or not (mean.any() or (variance != variance.flat[0]).any())
        if fresh or len(needed) > DEEPEST or not used_parameters(call.args[0], values):
            return None
        assert variance is not None
        seen = _variance(mod, call, needed, batches)
        trained = np.asarray(variance, np.float64)
        alive = (seen > 0) & (trained > 1e-12)
        octaves = 0.5 * np.log2(seen[alive] / trained[alive])
        return Sizes(str(var.name), octaves) if alive.sum() >= 3 else None
    return None


def _needed(source: Expr, values: Mapping[Any, Expr]) -> list[Any]:
    """Return the variables that source is computed from, in order, parameters left out."""
    needed: dict[Any, None] = {}
    stack = [source]
    while stack:
        var = stack.pop()
        if var in values and var not in needed:
            needed[var] = None
            stack += list(used_vars(values[var]))
    return [var for var in values if var in needed]


def used_parameters(source: Expr, values: Mapping[Any, Expr]) -> bool:
    """Tell whether source is computed from a parameter of main."""
    read = [source] + [used for var in _needed(source, values) for used in used_vars(values[var])]
    return any(isinstance(var, relax.Var) and var not in values for var in read)


def _variance(mod: tvm.IRModule, norm: relax.Call, needed: Sequence[Any], batches: Sequence[Batch]) -> Floats:
    """Return the variance of each channel [C] of what a batch norm reads."""
    interpreter = Interpreter(mod)
    values = {binding.var: binding.value for binding in bindings(mod["main"])}
    axis = int(norm.attrs.axis)
    sums = np.zeros((2, int(norm.args[3].ty.shape[0])))
    rows = 0
    for batch in batches:
        known: dict[Any, Any] = dict(zip(mod["main"].params, batch, strict=True))
        with torch.no_grad():
            for var in needed:
                known[var] = interpreter.evaluate(values[var], known)
            x = interpreter.evaluate(norm.args[0], known).double().movedim(axis, 0).flatten(1)
        sums += torch.stack([x.sum(1), (x * x).sum(1)]).numpy()
        rows += x.shape[1]
    mean, square = sums / max(rows, 1)
    variance: Floats = np.maximum(square - mean**2, 0)
    return variance


def _by_training(sizes: Sizes, prepared: str) -> Finding:
    large = sizes.factor > 1
    times = sizes.factor if large else 1 / sizes.factor
    how = f"tvmq made them with {prepared}" if prepared else "prepare them exactly as in training"
    return Finding(
        Kind.NORMALISATION,
        f"the first batch norm ({sizes.norm}) sees values {times:.3g} times as "
        f"{'large' if large else 'small'} as in training",
        "the inputs are probably not scaled as the model expects",
        f"{how}: mean and std, and whether pixels are 0..1 or 0..255, are the first to look at",
        {"factor": sizes.factor},
    )


def _by_custom(mod: tvm.IRModule, specs: Sequence[TensorSpec], batches: Sequence[Batch]) -> Iterator[Finding]:
    readers = {
        var.name: op_name(binding.value)
        for binding in bindings(mod["main"])
        for var in used_vars(binding.value)
    }
    for index, spec in enumerate(specs):
        if not _is_image(spec) or readers.get(spec.name) in OWN_SCALING:
            continue
        low = min(float(batch[index].min()) for batch in batches)
        high = max(float(batch[index].max()) for batch in batches)
        usual = _pixels(low, high)
        if usual:
            yield Finding(
                Kind.NORMALISATION,
                f"input {spec.name!r} holds {low:.4g} to {high:.4g}, which looks like pixels in {usual}",
                "most models of images take (pixel - mean) / std, and ranges of other inputs do not fit them",
                "scale them as in training; if the model was trained on these, all is well",
                {"lowest": low, "highest": high},
            )


def _pixels(low: float, high: float) -> str:
    """Return which pixels have this range, "" if none."""
    if low < 0 or low > 0.1 * high:
        return ""
    if 0.9 < high <= 1:
        return "0..1"
    return "0..255" if 128 < high <= 255 else ""


def _is_image(spec: TensorSpec) -> bool:
    if spec.dtype != "float32" or len(spec.shape) != 4:
        return False
    _, channels, *sides = spec.shape
    return channels in (1, 3) and min(sides) >= SMALLEST_IMAGE
