"""Round weights to 2..8 bits with one scale per output channel, chosen on the layer's output error.

With power-of-two requantize the scale of channel c is scale_out / scale_x * 2**-k[c]; k is searched in a
window around the largest that clips nothing. Few bits want finer scales: theirs are gain[c] times that, for
the gains that int32 sums have room for (numerics.gain_and_shift), tried from the coarsest due on. Otherwise
the scale is free and a few clipping factors are tried. The error of a candidate is delta^T E[x x^T] delta,
the expected squared error of the output, from the Gram matrix that calibration kept; without one, the squared
error of the weights.

No scale falls below smallest_scales: finer steps would carry the bias, or the output's zero point, out of the
int32 accumulator. It matters for channels whose weights are (almost) zero beside their bias: pruned ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tvmq import numerics
from tvmq.formats import QuantizedWeight, QuantParams

WINDOW = (-1, 0, 1, 2)  # added to the largest exponent that clips nothing; +1 halves the range
MAX_SHIFT = 31
FREE_FACTORS = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7)
# With few values, finer steps for most weights are worth more clipping of the largest.
LOW_BITS_WINDOW = (*WINDOW, 3)
GAINED = 8  # candidates with gains: an octave of them
LOW_BITS_GAINED = 12
LOW_BITS = 4  # the most that want so many
LOW_BITS_FACTORS = (*FREE_FACTORS, 0.75, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
GAINS = (numerics.MOST_GAIN + 1) // 2  # to an octave
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
    bits: int = 8,
    *,
    gained: bool = True,
    limits: tuple[int, int] | None = None,
) -> QuantizedWeight:
    """Return values [K, N] of so many bits and scales [N] of weight [K, N].

    ratio is scale_out / scale_x for power-of-two requantize, None where the scale is free. gram is [K, K].
    gained: few bits may have gains. limits: of values, by default as far below zero as above.
    No scale is below smallest [N], except that the coarsest, a shift of 0 or to the left, is always allowed.
    Weights too large for ratio get free scales, and their site a fixed-point requantize.
    """
    candidates = scale_candidates(weight, ratio, smallest, bits, gained=gained)
    return nearest_of(weight, gram, candidates, bits, limits)


def largest_value(bits: int) -> int:
    """Return the largest weight of so many bits; the least may be one further from zero."""
    return (1 << bits - 1) - 1


def largest_reached(bits: int) -> int:
    """Return the largest weight that no fixed-point requantize is needed for, in steps of a shift of 0."""
    largest = largest_value(bits)
    return largest << _room(largest)


def _room(largest: int) -> int:
    """Return by how much values up to largest may be shifted to the left in an int8.

    integer_parameters.widened does that to them instead of to the product.
    """
    return (QMAX // largest).bit_length() - 1


def scale_candidates(
    weight: Floats,
    ratio: float | None,
    smallest: Floats | float = 0.0,
    bits: int = 8,
    *,
    gained: bool = True,
) -> list[Floats]:
    """Return scales [N] each to choose from for values of so many bits; the rest as for quantize_weight."""
    largest = largest_value(bits)
    absmax = np.maximum(np.abs(weight).max(axis=0), ABSMAX_FLOOR)
    floor = np.broadcast_to(smallest, absmax.shape)
    left = _room(largest)
    if ratio is None or (absmax > largest * 2**left * ratio).any():
        factors = FREE_FACTORS if largest == QMAX else LOW_BITS_FACTORS
        return [np.maximum(absmax / largest * factor, floor) for factor in factors]
    if gained and largest < QMAX:
        places = GAINED if bits > LOW_BITS else LOW_BITS_GAINED
        packed = floor * 2.0 ** (8 - bits)  # where kernels unpack, sums are as much larger
        return [ratio * each for each in _gained(absmax / largest / ratio, packed / ratio, left, places)]
    top = np.floor(np.log2(largest * ratio / absmax))
    finest = np.floor(np.log2(ratio / np.maximum(floor, ratio * 2.0**-MAX_SHIFT)))
    window = WINDOW if largest == QMAX else LOW_BITS_WINDOW
    return [ratio * 2.0 ** -np.clip(top + step, -left, np.maximum(finest, -left)) for step in window]


def _gained(widest: Floats, floor: Floats, left: int, places: int) -> list[Floats]:
    """Return so many scales [N] with gains each, from the finest that is no finer than widest on.

    Where a gain times floor is above its scale, sums would have no room for it: the next power of two takes
    its place. None of these is below floor, where 2**left is not; that is the coarsest.
    """
    first, coarsest = _place(widest), _place(np.full_like(widest, 2.0**left))
    last = np.ceil(_place(np.maximum(floor, 2.0 ** (numerics.GAIN_BITS - MAX_SHIFT))) / GAINS) * GAINS
    found = []
    for step in range(places):
        gained = first - step
        gain = (GAINS + gained % GAINS).astype(np.int64)
        odd = gain // (gain & -gain)
        power = np.maximum(np.ceil(gained / GAINS) * GAINS, last)
        fits = (_at(gained) >= floor * odd) & (gained >= last - GAINS)
        found.append(_at(np.minimum(np.where(fits, gained, power), coarsest)))
    return found


def _at(place: Floats) -> Floats:
    """Return the scale at a place."""
    found: Floats = 2.0 ** (place // GAINS) * (GAINS + place % GAINS) / (2 * GAINS)
    return found


def _place(scale: Floats) -> Floats:
    """Return the place of the finest scale with a gain that is no finer than scale, GAINS to an octave."""
    mantissa, exponent = np.frexp(scale)
    found: Floats = exponent * float(GAINS) + np.ceil(mantissa * 2 * GAINS) - GAINS
    return found


def smallest_scales(weight: Floats, bias: Floats, x: QuantParams, out: QuantParams | None) -> Floats:
    """Return the scale [N] below which an accumulator of weight [K, N] and bias [N] could pass int32.

    An accumulator holds the products, both zero points, the bias and the rounding half; out None: float.
    """
    reach = np.abs(weight).sum(axis=0) * (max(-x.low, x.high) + abs(x.zero_point)) + np.abs(bias) / x.scale
    finest = 0.0
    if out is not None:
        reach = reach + (abs(out.zero_point) + 0.5) * out.scale / x.scale
        finest = FINEST * out.scale / x.scale
    return np.asarray(np.maximum(reach / ACCUMULATOR, finest), np.float64)


def nearest_of(
    weight: Floats,
    gram: npt.NDArray[np.float32] | None,
    candidates: Sequence[Floats],
    bits: int,
    limits: tuple[int, int] | None = None,
) -> QuantizedWeight:
    """Return the nearest values [K, N] of so many bits, each column at the candidate [N] of least error."""
    low, high = limits or (-largest_value(bits), largest_value(bits))
    exact = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    metric = None if gram is None else torch.from_numpy(gram)
    best_error: torch.Tensor | None = None
    values, scales = torch.empty(0), torch.empty(0)
    for scale in candidates:
        step = torch.from_numpy(scale.astype(np.float32))
        q = torch.clamp(torch.floor(exact / step + 0.5), low, high)
        delta = q * step - exact
        error = (delta * (delta if metric is None else metric @ delta)).sum(0)
        if best_error is None:
            best_error, values, scales = error, q, step.clone()
            continue
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        values = torch.where(better, q, values)
        scales = torch.where(better, step, scales)
    return QuantizedWeight(values.to(torch.int8).numpy(), scales.numpy(), bits)


def corrected_bias(
    bias: Floats, weight: Floats, quantized: QuantizedWeight, mean_input: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return bias [N] less the mean output error of the rounded weights."""
    error = quantized.values.astype(np.float64) * quantized.scale - weight
    return np.asarray(bias - np.einsum("k,kn->n", mean_input.astype(np.float64), error), np.float32)
