"""Weights for the inputs that a quantized site really sees: compensated, scaled and rounded in closed form.

Zhong et al., "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers" (2024), section 3:
ridge regression first moves the float weights to where they make up for the error of the quantized inputs,
W' = W + (E[q q^T] + r I)^-1 E[q (x - q)^T] W; then they are rounded, each rounding made up for by the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvmq.quantize.moments import Moments, pooled
from tvmq.quantize.rounding import (
    Limits,
    damped,
    descended,
    factored,
    output_error,
    rounded_with_feedback,
    with_ridge,
)

Tensor = torch.Tensor

RIDGES = (0.03, 0.3, 3.0, 30.0, 300.0)  # added to the diagonal for the compensation, of its mean


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """Whole numbers [G, K, N], scales [G, N], and the float weights [G, K, N] that were rounded."""

    values: Tensor
    scale: Tensor
    wanted: Tensor

    @property
    def weight(self) -> Tensor:
        """Return what they stand for."""
        return self.values * self.scale[:, None, :]


def solve(
    weight: Tensor,
    halves: tuple[Moments, Moments],
    candidates: Sequence[Tensor],
    limits: Limits,
    *,
    compensate: bool = True,
) -> Solved:
    """Return the best whole numbers within limits for weight [G, K, N].

    halves: the moments of two halves of the data, centred where a bias follows. candidates: scales [G, N];
    each column takes the best of them.
    """
    moments = pooled(*halves)
    metric = damped(moments.gram, moments.rows)
    wanted = compensated(weight, moments, best_ridge(weight, halves)) if compensate else weight
    groups, width, columns = weight.shape
    many = wanted.repeat(1, 1, len(candidates))
    scales = torch.cat(list(candidates), 1)
    values = rounded_with_feedback(many, scales, metric, limits)
    values = descended(many, scales, metric, values, limits)
    errors = output_error(many, scales, metric, values).reshape(groups, len(candidates), columns)
    best = errors.argmin(1)  # [G, N]
    scale = _picked(scales.reshape(groups, len(candidates), columns), best)
    index = best[:, None, None, :].expand(groups, width, 1, columns)
    values = values.reshape(groups, width, len(candidates), columns).gather(2, index)[:, :, 0]
    return Solved(values, scale, wanted)


def best_ridge(weight: Tensor, halves: tuple[Moments, Moments]) -> float | None:
    """Return the ridge that, fitted to one half, leaves least error on the other; None: no compensation.

    What few rows say of many inputs is mostly noise: a ridge too small fits it.
    """
    errors: dict[float | None, float] = {None: sum(_error(weight, weight, half) for half in halves)}
    for ridge in RIDGES:
        errors[ridge] = sum(
            _error(compensated(weight, fitted, ridge), weight, other)
            for fitted, other in (halves, halves[::-1])
        )
    return min(errors, key=lambda ridge: errors[ridge])


def compensated(weight: Tensor, moments: Moments, ridge: float | None) -> Tensor:
    """Return the float weights [G, K, N] that make up for the error of the inputs, pulled towards weight."""
    if ridge is None:
        return weight
    error = (moments.cross - moments.gram) @ weight
    change = torch.cholesky_solve(error.double(), factored(with_ridge(moments.gram, ridge)))
    return weight + change.float()


def _error(found: Tensor, weight: Tensor, moments: Moments) -> float:
    """Return the squared error of outputs q @ found against x @ weight, but for what found cannot change."""
    return float((found * (moments.gram @ found - 2 * (moments.cross @ weight))).double().sum())


def _picked(options: Tensor, best: Tensor) -> Tensor:
    return options.gather(1, best[:, None, :])[:, 0]
