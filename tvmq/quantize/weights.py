"""Round weights to int8 with one scale per output channel, chosen on the layer's output error.

With power-of-two requantize the scale of channel c is scale_out / scale_x * 2**-k[c]; k is searched in a
window around the largest that clips nothing. Otherwise the scale is free and a few
clipping factors are tried. The error of a candidate is delta^T E[x x^T] delta, the expected squared error of
the output, from the Gram matrix that calibration kept; without one, the squared error of the weights.

No scale falls below smallest_scales: finer steps would carry the bias, or the output's zero point, out of the
int32 accumulator. It matters for channels whose weights are (almost) zero beside their bias: pruned ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.numerics import INTEGER_RANGE

WINDOW = (-1, 0, 1, 2)  # added to the largest exponent that clips nothing; +1 halves the range
MAX_SHIFT = 31
FREE_FACTORS = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7)
QMAX = 127
ACCUMULATOR = 0.9 * 2.0**31  # the rest is for the correction of the bias
FINEST = 2.0**-30  # smallest ratio of accumulator to output steps, within a fixed-point multiplier's reach
ABSMAX_FLOOR = 1e-12  # stands for the largest weight of a channel of zeros

Floats = npt.NDArray[np.float64]


def quantize_weight(
    weight: Floats,
    gram: npt.NDArray[np.float32] | None,
    ratio: float | None,
    smallest: Floats | float = 0.0,
) -> QuantizedWeight:
    """Return int8 values [K, N] and scales [N] of weight [K, N].

    ratio is scale_out / scale_x for power-of-two requantize, None where the scale is free. gram is [K, K].
    No scale is below smallest [N], except that ratio itself, a shift of 0, is always allowed. Weights too
    large for ratio get free scales, and their site a fixed-point requantize.
    """
    absmax = np.maximum(np.abs(weight).max(axis=0), ABSMAX_FLOOR)
    floor = np.broadcast_to(smallest, absmax.shape)
    if ratio is None or (absmax > QMAX * ratio).any():  # a shift to the left would be needed
        return _best(weight, gram, _free(absmax, floor))
    return _best(weight, gram, _power_of_two(absmax, ratio, floor))


def smallest_scales(weight: Floats, bias: Floats, x: QuantParams, out: QuantParams | None) -> Floats:
    """Return the scale [N] below which an accumulator of weight [K, N] and bias [N] could pass int32.

    An accumulator holds the products, both zero points, the bias and the rounding half; out None: float.
    """
    low, high = INTEGER_RANGE[x.dtype]
    reach = np.abs(weight).sum(axis=0) * (max(-low, high) + abs(x.zero_point)) + np.abs(bias) / x.scale
    finest = 0.0
    if out is not None:
        reach = reach + (abs(out.zero_point) + 0.5) * out.scale / x.scale
        finest = FINEST * out.scale / x.scale
    return np.asarray(np.maximum(reach / ACCUMULATOR, finest), np.float64)


def _power_of_two(absmax: Floats, ratio: float, smallest: Floats) -> list[Floats]:
    """Return candidate scales ratio * 2**-k, [N] each."""
    largest = np.floor(np.log2(QMAX * ratio / absmax))
    finest = np.floor(np.log2(ratio / np.maximum(smallest, ratio * 2.0**-MAX_SHIFT)))
    return [ratio * 2.0 ** -np.clip(largest + step, 0, np.maximum(finest, 0)) for step in WINDOW]


def _free(absmax: Floats, smallest: Floats) -> list[Floats]:
    return [np.maximum(absmax / QMAX * factor, smallest) for factor in FREE_FACTORS]


def _best(
    weight: Floats, gram: npt.NDArray[np.float32] | None, candidates: Sequence[Floats]
) -> QuantizedWeight:
    exact = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    metric = None if gram is None else torch.from_numpy(gram)
    best_error: torch.Tensor | None = None
    values, scales = torch.empty(0), torch.empty(0)
    for scale in candidates:
        step = torch.from_numpy(scale.astype(np.float32))
        q = torch.clamp(torch.floor(exact / step + 0.5), -QMAX, QMAX)
        delta = q * step - exact
        error = (delta * (delta if metric is None else metric @ delta)).sum(0)
        if best_error is None:
            best_error, values, scales = error, q, step.clone()
            continue
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        values = torch.where(better, q, values)
        scales = torch.where(better, step, scales)
    return QuantizedWeight(values.to(torch.int8).numpy(), scales.numpy())


def corrected_bias(
    bias: Floats, weight: Floats, quantized: QuantizedWeight, mean_input: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return bias [N] less the mean output error of the rounded weights."""
    error = quantized.values.astype(np.float64) * quantized.scale - weight
    return np.asarray(bias - mean_input.astype(np.float64) @ error, np.float32)
