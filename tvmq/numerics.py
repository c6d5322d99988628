"""The integer arithmetic of tvmq, written once.

The reference, the lowering and every kernel compute exactly what the functions here say. All of them
take and return NumPy integer arrays; nothing here depends on TVM or torch.

Rounding is to nearest with ties up, `floor(x / 2**k + 1/2)`, then saturation. It is one addition and one
arithmetic shift on every machine, which rounding to even is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.signedinteger[Any] | np.unsignedinteger[Any]]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.floating[Any]]

INTEGER_RANGE = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}

# Integer layer norm: fraction bits of the centred input, of the standard deviation on top of those, of
# the normalised value, and of the reciprocal. With an int16 input and fewer than 8192 channels every
# intermediate fits int64 (see layer_norm).
CENTRED_FRACTION_BITS = 4
STD_EXTRA_BITS = 6
NORMALISED_FRACTION_BITS = 10
RECIPROCAL_BITS = 40
NEWTON_STEPS = 5
SQRT_POWERS = tuple(4**i for i in range(26))  # v < 4**25 for every int16 input
LAYER_NORM_MAX_CHANNELS = 8191

# Weights of few bits may count several times: by a whole number, which int32 sums have room for.
GAIN_BITS = 4
MOST_GAIN = 2**GAIN_BITS - 1

# Integer softmax: a logit counts 1/14 octave, so that the last of 128 table entries, which stands for every
# greater distance from the row's largest, is 9 octaves down: below half a unit of uint8, that is, zero.
STEPS_PER_OCTAVE = 14
SOFTMAX_TABLE_SIZE = 128
# Logits are 16-bit numbers: 2340 octaves each way. A masked key's is below every other by the table's reach.
HIDDEN_LOGIT = -(2**15)
LEAST_LOGIT = HIDDEN_LOGIT + SOFTMAX_TABLE_SIZE
ATTENTION_MAX_KEYS = (2**31 - 1) // (255 * 128)  # more, and the sum of weight * value could leave int32


def round_shift(x: IntArray, shift: IntArray | int) -> IntArray:
    """Return floor(x / 2**shift + 1/2) as int64; shift [] or broadcastable, any sign, |shift| <= 31."""
    wide = np.asarray(x, np.int64)
    k = np.asarray(shift, np.int64)
    right = np.maximum(k, 0)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
    return ((wide + half) >> right) << np.maximum(-k, 0)


def requantize(acc: IntArray, shift: IntArray | int, zero_point: int, dtype: str) -> IntArray:
    """Return saturate(round_shift(acc, shift) + zero_point) in dtype; the power-of-two requantize."""
    return saturate(round_shift(acc, shift) + zero_point, dtype)


def saturate(x: IntArray, dtype: str) -> IntArray:
    """Return x clipped to the range of dtype, in dtype."""
    low, high = INTEGER_RANGE[dtype]
    return np.clip(x, low, high).astype(dtype)


def fixed_point_multiplier(ratio: FloatArray) -> tuple[Int32Array, Int32Array]:
    """Return (multiplier int32 in [2**30, 2**31), shift int32) with ratio = multiplier / 2**shift.

    The comparison mode `requantize="fixed_point"`: 31 bits of mantissa, one rounding. Ratios are
    positive; shift must lie in [1, 62].
    """
    mantissa, exponent = np.frexp(np.asarray(ratio, np.float64))
    multiplier = np.rint(mantissa * 2.0**31).astype(np.int64)
    carried = multiplier == 2**31
    multiplier = np.where(carried, 2**30, multiplier)
    shift = 31 - exponent.astype(np.int64) - carried
    if ((shift < 1) | (shift > 62)).any():
        raise ValueError(f"ratio outside [2**-31, 2**30]: {np.asarray(ratio)[(shift < 1) | (shift > 62)]}")
    return multiplier.astype(np.int32), shift.astype(np.int32)


def requantize_fixed_point(
    acc: IntArray, multiplier: IntArray, shift: IntArray, zero_point: int, dtype: str
) -> IntArray:
    """Return saturate(floor(acc * multiplier / 2**shift + 1/2) + zero_point); |acc| < 2**31."""
    product = np.asarray(acc, np.int64) * np.asarray(multiplier, np.int64)
    return saturate(round_shift_wide(product, shift) + zero_point, dtype)


def round_shift_wide(x: IntArray, shift: IntArray | int) -> IntArray:
    """Return floor(x / 2**shift + 1/2) for int64 x and shift in [1, 62]."""
    k = np.asarray(shift, np.int64)
    return (np.asarray(x, np.int64) + (np.int64(1) << (k - 1))) >> k


def convolution(
    x: IntArray,
    weight: IntArray,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
) -> IntArray:
    """Return the sums of a convolution, int64 [B, out rows, out columns, O].

    x [B, H, W, C]; weight [rows, columns, C / groups, O]; padding: top, left, bottom, right, of pad_value,
    the stored zero, whose products the bias takes out again.
    """
    top, left, bottom, right = padding
    wide = np.pad(
        np.asarray(x, np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad_value
    )
    rows, columns, inputs, outputs = weight.shape
    size = [
        (wide.shape[1 + axis] - (length - 1) * dilation[axis] - 1) // strides[axis] + 1
        for axis, length in enumerate((rows, columns))
    ]
    split = np.asarray(weight, np.int64).reshape(rows, columns, inputs, groups, outputs // groups)
    total = np.zeros((len(x), *size, groups, outputs // groups), np.int64)
    for down in range(rows):
        for across in range(columns):
            first = down * dilation[0], across * dilation[1]
            ends = [f + (n - 1) * s + 1 for f, n, s in zip(first, size, strides, strict=True)]
            seen = wide[:, first[0] : ends[0] : strides[0], first[1] : ends[1] : strides[1]]
            total += np.einsum(
                "bijgc,cgo->bijgo", seen.reshape(*seen.shape[:3], groups, inputs), split[down, across]
            )
    return total.reshape(len(x), *size, outputs)


def max_pool(
    x: IntArray, window: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int, int, int]
) -> IntArray:
    """Return the largest of each window of x [B, H, W, C], in its dtype; padding is never the largest."""
    lowest = INTEGER_RANGE[str(x.dtype)][0]
    largest: IntArray = _windows(x, window, strides, padding, lowest).max((-2, -1))
    return largest


def mean_pool(
    x: IntArray,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    *,
    zero_point: int,
    multiplier: int,
    shift: int,
    out_zero_point: int,
    dtype: str,
) -> IntArray:
    """Return the mean of each window of x [B, H, W, C] in dtype; padding counts as real zero.

    multiplier / 2**shift = scale / (out scale * window size), as fixed_point_multiplier gives it; a window's
    sum reaches no 2**31.
    """
    centred = np.asarray(x, np.int64) - zero_point
    sums = _windows(centred, window, strides, padding, 0).sum((-2, -1))
    factor, by = np.array(multiplier, np.int32), np.array(shift, np.int32)
    return requantize_fixed_point(sums, factor, by, out_zero_point, dtype)


def _windows(
    x: IntArray,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    fill: int,
) -> IntArray:
    """Return [B, out rows, out columns, C, window rows, window columns]."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2))
    return seen[:, :: strides[0], :: strides[1]]


def gain_and_shift(ratio: FloatArray, tolerance: float = 1e-6) -> tuple[Int32Array, Int32Array] | None:
    """Return odd gains below MOST_GAIN + 1 and shifts with ratio = gain / 2**shift; None if one has no such.

    Ratios are positive. What they rescale stays in int32: a sum times its gain, then shifted to the right.
    """
    mantissa, exponent = np.frexp(np.asarray(ratio, np.float64))
    scaled = mantissa * (MOST_GAIN + 1)
    gain = np.rint(scaled).astype(np.int64)
    if (np.abs(scaled - gain) > tolerance * gain).any():
        return None
    shift = GAIN_BITS - exponent.astype(np.int64)
    even = np.log2((gain & -gain).astype(np.float64)).astype(np.int64)
    return (gain >> even).astype(np.int32), (shift - even).astype(np.int32)


def power_of_two_exponent(ratio: float, tolerance: float = 1e-6) -> int | None:
    """Return k with log2(ratio) within tolerance of -k, the rounding of a few float32 scales, else None."""
    exponent = -math.log2(ratio)
    nearest = round(exponent)
    return nearest if abs(exponent - nearest) < tolerance else None


def unary_table(
    function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    scale_in: float,
    zero_point_in: int,
    scale_out: float,
    zero_point_out: int,
    limits: tuple[int, int] = (0, 255),
) -> npt.NDArray[np.uint8]:
    """Return the 256 uint8 values of function for every uint8 input, clipped to limits; ties round up."""
    x = (np.arange(256, dtype=np.float64) - zero_point_in) * scale_in
    steps = np.floor(function(x) / scale_out + 0.5) + zero_point_out
    table: npt.NDArray[np.uint8] = np.clip(steps, *limits).astype(np.uint8)
    return table


def nearest_codes(codes: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the nearest of codes, ascending, for each of the 256 values of uint8; ties go up."""
    known = np.asarray(codes, np.int64)
    edges = known[1:] + known[:-1]  # twice the middles between neighbours
    return known[np.searchsorted(edges, 2 * np.arange(256), side="right")].astype(np.uint8)


def integer_sqrt(v: IntArray) -> IntArray:
    """Return floor(sqrt(v)) to within one unit, for 0 <= v < 4**25; int64.

    Five Newton steps from the power of two just above the root: the relative error falls
    1, 1/4, 1/40, 3e-4, 5e-8, below the last bit of a 25-bit root.
    """
    wide = np.asarray(v, np.int64)
    powers = np.asarray(SQRT_POWERS, np.int64)
    count = (wide[..., None] >= powers).sum(-1)
    root: IntArray = np.int64(1) << count
    for _ in range(NEWTON_STEPS):
        root = (root + wide // root) >> 1
        root = np.maximum(root, 1)
    return root


def layer_norm(
    x: IntArray,
    gain: IntArray,
    offset: IntArray,
    *,
    gain_shift: int,
    epsilon: int,
    limit: int,
    dtype: str,
) -> IntArray:
    """Return the integer layer norm over the last axis of x, int16 [rows, C], C <= 8191.

    gain, offset: int32 [C]; offset carries beta, the output's zero point and the rounding half.
    epsilon: the float epsilon in units of the centred variance, 2**20 / scale_in**2.
    limit: bound of the normalised value; limit * max|gain| + max|offset| < 2**31.
    The variance is taken around the rounded mean in a second pass (methods.md 4.3), so it never cancels.
    """
    channels = x.shape[-1]
    wide = np.asarray(x, np.int64) << CENTRED_FRACTION_BITS
    mean = (2 * wide.sum(-1, keepdims=True) + channels) // (2 * channels)
    centred = wide - mean
    energy = (centred * centred).sum(-1, keepdims=True)
    variance = (energy << (2 * STD_EXTRA_BITS)) // channels + epsilon
    std = integer_sqrt(variance)
    reciprocal = (np.int64(1) << RECIPROCAL_BITS) // std
    normalised = round_shift_wide(centred * reciprocal, NORMALISED_SHIFT)
    normalised = np.clip(normalised, -limit, limit)
    scaled = (normalised * np.asarray(gain, np.int64) + np.asarray(offset, np.int64)) >> gain_shift
    return saturate(scaled, dtype)


# centred / std is in units of 2**-STD_EXTRA_BITS; the product with the reciprocal adds RECIPROCAL_BITS.
NORMALISED_SHIFT = RECIPROCAL_BITS - STD_EXTRA_BITS - NORMALISED_FRACTION_BITS


def layer_norm_limit(channels: int) -> int:
    """Return a power of two above sqrt(channels) * 2**NORMALISED_FRACTION_BITS, with headroom of 2x."""
    return 1 << (NORMALISED_FRACTION_BITS + math.ceil(math.log2(math.sqrt(channels))) + 1)


def softmax_table() -> npt.NDArray[np.uint8]:
    """Return round(255 * 2**(-d / 14)) for d in [0, 128): uint8 [128]; the last is 0."""
    d = np.arange(SOFTMAX_TABLE_SIZE, dtype=np.float64)
    return np.floor(255.0 * 2.0 ** (-d / STEPS_PER_OCTAVE) + 0.5).astype(np.uint8)


def least_score_shift(head_dim: int) -> int:
    """Return the most negative score_shift that keeps int8 q and k's product, shifted left, below 2**30."""
    return min(0, math.ceil(math.log2(head_dim)) - 16)


def logit_bias(bias: FloatArray) -> npt.NDArray[np.int16]:
    """Return an additive bias in the logits' unit, ties up, saturated to 16 bits.

    -inf and the like become the least number; weights 127 steps below a row's largest are 0 anyway.
    """
    octaves = np.clip(np.asarray(bias, np.float64) * math.log2(math.e), -(2.0**12), 2.0**12)
    return saturate(np.floor(octaves * STEPS_PER_OCTAVE + 0.5), "int16").astype(np.int16)


def attention(
    q: IntArray,
    k: IntArray,
    v: IntArray,
    table: IntArray,
    *,
    score_shift: int,
    numerator: int,
    norm_shift: int,
    zero_point: int,
    dtype: str,
    biases: Sequence[IntArray] = (),
    mask: IntArray | None = None,
) -> IntArray:
    """Return integer attention of int8 q [..., T, D], k and v [..., S, D] as dtype [..., T, D].

    The logits, shifted right by score_shift (left where it is negative), count 1/14 octaves. The largest of a
    row has weight 255, the others 255 * 2**-distance; the division by the sum of the weights comes after the
    product with v, one per row, so flat rows keep all 8 bits (probabilities of 1/256 would lose them).
    numerator / 2**norm_shift = scale_v / scale_out, numerator < 2**31; |q.k| * D < 2**31 and
    S <= ATTENTION_MAX_KEYS.

    biases, mask: for q [B, H, T, D]. biases: at most two, int16 [P, 1 or H, T, S] in the logits' unit, P
    divides B: batch b adds bias[b % P], so that windows that repeat share theirs. Logits saturate to int16
    before and after each sum, and none is below LEAST_LOGIT.
    mask: [1 or B, 1 or T, S], 0 hides a key: its weight is 0. A row that sees no key gives zero_point.
    """
    wide_q, wide_k, wide_v = (np.asarray(a, np.int64) for a in (q, k, v))
    logits = saturate(round_shift(wide_q @ np.swapaxes(wide_k, -1, -2), score_shift), "int16").astype(
        np.int64
    )
    for bias in biases:
        total = logits + np.tile(bias, (len(logits) // len(bias), 1, 1, 1))
        logits = saturate(total, "int16").astype(np.int64)
    seen = np.True_ if mask is None else np.asarray(mask)[:, None] != 0
    logits = np.where(seen, np.maximum(logits, LEAST_LOGIT), HIDDEN_LOGIT)
    distance = np.minimum(logits.max(-1, keepdims=True) - logits, SOFTMAX_TABLE_SIZE - 1)
    weights = np.where(seen, np.asarray(table, np.int64)[distance], 0)
    reciprocal = numerator // np.maximum(weights.sum(-1, keepdims=True), 1)
    product = (weights @ wide_v) * reciprocal
    return saturate(round_shift_wide(product, norm_shift) + zero_point, dtype)
