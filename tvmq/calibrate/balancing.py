"""Decide how far each channel is balanced: the powers of two that passes/balance.py applies.

m_c = 2**round(log2(max|x_c|**alpha / max|W_c|**(1 - alpha))), SmoothQuant's factor rounded to a power of two.
Alpha is searched per group by the error of the linears' outputs (P2-ViT), leaving it alone among them.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.passes.balance import Factors, Group, find_groups

Float32 = npt.NDArray[np.float32]
Exponents = npt.NDArray[np.int32]

ALPHAS = (0.35, 0.4, 0.5, 0.55, 0.65)
SMALLEST_RANGE = 1e-5  # of the widest channel's range: what a dead channel counts as
# A channel's mean square when no moments are known, over its largest square: as if normal.
MEAN_SQUARE = 1 / 9


def balance_factors(
    mod: tvm.IRModule, calibration: Calibration, *, weight_bits: int = 8, activation_bits: int = 8
) -> Factors:
    """Decide the exponents of every group of mod, which is canonical; groups best left alone are absent.

    The error that alpha is chosen by comes from the moments of the linears' inputs where calibration has
    them, else from the ranges of the channels, which it must have.
    """
    calibration.require_module(mod)
    factors = {}
    for group in find_groups(mod):
        exponents = _decide(group, calibration, weight_bits, activation_bits)
        if exponents.any():
            factors[group.site] = tuple(int(e) for e in exponents)
    return MappingProxyType(factors)


def _decide(group: Group, calibration: Calibration, weight_bits: int, activation_bits: int) -> Exponents:
    """Return the exponents [C] of least output error; all zero if no alpha beats leaving the group alone."""
    stats = calibration.values.get(group.value)
    if stats is None or stats.absmax_per_channel is None:
        raise ValueError(f"balance: calibration has no ranges per channel of {group.value!r}")
    moments = calibration.linear_inputs.get(group.consumers[0])
    gram = np.diag(stats.absmax_per_channel**2 * MEAN_SQUARE) if moments is None else moments.gram
    candidates = [np.zeros(len(gram), np.int32)]
    for alpha in ALPHAS:
        exponents = _exponents(stats.absmax_per_channel, group.weights, alpha)
        if not any(np.array_equal(exponents, other) for other in candidates):
            candidates.append(exponents)
    errors = [_output_error(group, stats, gram, e, (weight_bits, activation_bits)) for e in candidates]
    return candidates[int(np.argmin(errors))]


def _exponents(absmax: Float32, weights: tuple[Float32, ...], alpha: float) -> Exponents:
    """Return round(log2(absmax**alpha / wmax**(1 - alpha))) [C], less its rounded mean."""
    rows = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
    log_m = alpha * np.log2(_floored(absmax)) - (1 - alpha) * np.log2(_floored(rows))
    exponents = np.rint(log_m).astype(np.int32)
    return np.asarray(exponents - np.int32(np.rint(exponents.mean())))


def _floored(ranges: Float32) -> Float32:
    """Return ranges with none below SMALLEST_RANGE of the widest; all 1 when all are zero."""
    widest = float(ranges.max())
    return np.maximum(ranges, widest * SMALLEST_RANGE) if widest > 0 else np.ones_like(ranges)


def _output_error(
    group: Group, stats: ValueStats, gram: Float32, exponents: Exponents, bits: tuple[int, int]
) -> float:
    """Return the expected squared error of the linears' outputs, per row, once x / m and m W are quantized.

    Rounding of activations is independent noise of variance scale**2 / 12; that of weights is computed.
    """
    weight_bits, activation_bits = bits
    low, high = stats.low_per_channel, stats.high_per_channel
    assert low is not None
    assert high is not None
    m = np.exp2(exponents).astype(np.float32)
    span = max((high / m).max(), 0.0) - min((low / m).min(), 0.0)
    noise = (float(span) / (2**activation_bits - 1)) ** 2 / 12
    balanced_gram = gram / m / m[:, None]
    error = 0.0
    for weight in group.weights:
        balanced = weight * m[:, None]
        scale = np.abs(balanced).max(0) / (2 ** (weight_bits - 1) - 1)
        scale = np.where(scale > 0, scale, np.float32(1))
        rounding = np.rint(balanced / scale) * scale - balanced
        error += noise * float(np.square(balanced).sum())  # vdot's sums depend on the number of threads
        error += float((rounding * (balanced_gram @ rounding)).sum())
    return error
