"""Round weights so that each rounding error is made up for by the weights not yet rounded: GPTQ.

Frantar et al., "GPTQ: Accurate Post-Training Quantization" (2023), section 3: rows of W [K, N] are rounded in
turn; the error of row i is taken from the later rows, multiplied by U[i, j] / U[i, i], where U is the upper
Cholesky factor of the inverse of the inputs' second moments. That lowers the output error greedily.
Scales stay as they were chosen; where inputs are correlated (after a GELU, say) the error falls to a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tvmq.calibrate.calibration import InputMoments
from tvmq.formats import QuantizedWeight
from tvmq.quantize.weights import largest_value

BLOCK = 64  # rows whose errors are passed on together
# Added to the diagonal, of its mean: the paper's 1 %, and more where so few rows were seen that the moments
# of K inputs are half noise.
DAMPING = 0.01
FLOAT32_ROUNDING = 2.0**-24  # of a float32 moment
DAMPING_FEW_ROWS = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """How the error of one weight row spreads to the others."""

    order: torch.Tensor  # int64 [K]: rows in the order of rounding, inputs of most energy first
    factor: torch.Tensor  # float32 [K, K]: U, rows and columns in that order
    metric: torch.Tensor  # float32 [K, K]: the moments, rows and columns as in the weight


def feedback_of(moments: InputMoments, *, centred: bool) -> Feedback | None:
    """Return how errors spread for inputs with these moments; None if these say nothing.

    They say nothing of inputs that never vary, or vary so little around a large mean that float32 lost it.

    centred: the bias makes up for the inputs' mean, so only their covariance counts.
    """
    second = moments.gram.astype(np.float64)
    if centred:
        mean = moments.mean.astype(np.float64)
        second = second - np.outer(mean, mean)
    metric = torch.from_numpy(second)
    level = float(metric.diagonal().mean())
    lost = len(second) * FLOAT32_ROUNDING * float(moments.gram.diagonal().mean())
    if not level > lost:
        return None
    damping = max(DAMPING, DAMPING_FEW_ROWS * len(second) / max(moments.rows, 1))
    damped = metric.clone()
    damped.diagonal().add_(damping * level)
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    lower, failed = torch.linalg.cholesky_ex(damped[order][:, order])
    if failed:
        return None
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or not torch.isfinite(factor).all():
        return None
    return Feedback(order, factor.to(torch.float32), metric.to(torch.float32))


def compensated(
    weight: npt.NDArray[np.float64], nearest: QuantizedWeight, feedback: Feedback
) -> QuantizedWeight:
    """Return weight [K, N] rounded with error feedback at the scales and bits of nearest.

    A channel whose output error would not become smaller keeps its nearest values.
    """
    exact = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    scale = torch.from_numpy(nearest.scale)
    before = torch.from_numpy(nearest.values).to(torch.float32)
    after = torch.empty_like(before)
    after[feedback.order] = _rounded(
        exact[feedback.order] / scale, feedback.factor, largest_value(nearest.bits)
    )
    better = _error(after * scale - exact, feedback) < _error(before * scale - exact, feedback)
    values = torch.where(better, after, before).to(torch.int8)
    return QuantizedWeight(values.numpy(), nearest.scale, nearest.bits)


def _rounded(steps: torch.Tensor, factor: torch.Tensor, largest: int) -> torch.Tensor:
    """Return whole numbers for weights in units of their scale, [K, N]; steps is overwritten."""
    rows = len(steps)
    values = torch.empty_like(steps)
    for start in range(0, rows, BLOCK):
        end = min(start + BLOCK, rows)
        errors = torch.empty_like(steps[start:end])
        for i in range(start, end):
            values[i] = torch.clamp(torch.floor(steps[i] + 0.5), -largest, largest)
            errors[i - start] = (steps[i] - values[i]) / factor[i, i]
            steps[i + 1 : end].addr_(factor[i, i + 1 : end], errors[i - start], alpha=-1)
        steps[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return values


def _error(delta: torch.Tensor, feedback: Feedback) -> torch.Tensor:
    """Return the expected squared output error [N] of weight errors [K, N]."""
    return (delta * (feedback.metric @ delta)).sum(0)
