"""Turn scales into the integers that the composites take: biases, shifts, gains, numerators."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmq import numerics
from tvmq.errors import UnsupportedModelError
from tvmq.formats import PACKED_BITS, QuantizedWeight, QuantParams, bits_of

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
LIMIT = 2**31
SMALLEST_RATIO = 2.0**-31  # of a fixed-point multiplier; the proof of the accumulator bounds the largest
MOST_EPSILON = 4**25  # the largest variance of int16 in the units of numerics.layer_norm
HEADROOM = 2**16  # for the residual and the zero point that are added after the shift


def widened(x: QuantParams, weight: QuantizedWeight, out: QuantParams) -> QuantizedWeight:
    """Return weight [K, N] with finer scales where a left shift would be due and an int8 has room for it.

    Weights of few bits have it: their values are shifted instead of the products, which changes no number.
    """
    ratio = float(np.float32(x.scale)) * weight.scale.astype(np.float64) / float(np.float32(out.scale))
    exponents = [numerics.power_of_two_exponent(r) for r in ratio]
    if any(exponent is None for exponent in exponents):
        return weight
    left = np.maximum(-np.array(exponents, np.int64), 0)
    values = weight.values.astype(np.int64) << np.minimum(left, 8)
    low, high = numerics.INTEGER_RANGE["int8"]
    if not left.any() or (values < low).any() or (values > high).any():
        return weight
    return QuantizedWeight(values.astype(np.int8), (weight.scale / np.exp2(left)).astype(np.float32))


@dataclass(frozen=True, slots=True)
class LinearParameters:
    """bias int32 [N]; rescale, [N]: (shift,), (multiplier, shift), (float factor,), int8 (gain, shift)."""

    bias: Int32s
    rescale: tuple[npt.NDArray[np.int32] | npt.NDArray[np.int8] | npt.NDArray[np.float32], ...]
    fixed_point: bool = False  # a multiplier
    gain: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """A weight [K, N] as integers multiply it, how many bits of each byte it uses, and what follows."""

    weight: QuantizedWeight
    bits: int
    numbers: LinearParameters


def product_parameters(
    site: str, x: QuantParams, weight: QuantizedWeight, bias: Floats | None, out: QuantParams | None
) -> Product:
    """Return weight [K, N] and its linear_parameters.

    Weights of few bits lie in the highest bits of an int8, and their scale is the finer for it: a packed byte
    is masked only, a left shift that is due is there already, and the bias is rounded less. Where sums, gains
    or shifts would have no room, they stay as they are, one to a byte, if that has.
    """
    bits, packed = bits_of(weight.values), None
    if bits in PACKED_BITS:
        left = 8 - bits
        finer = QuantizedWeight(weight.values << left, (weight.scale / 2.0**left).astype(np.float32))
        with contextlib.suppress(UnsupportedModelError):
            packed = Product(finer, bits, linear_parameters(site, x, finer, bias, out))
    if packed is not None and not packed.numbers.fixed_point:
        return packed
    if out is not None:
        weight = widened(x, weight, out)
    plain = Product(weight, 8, linear_parameters(site, x, weight, bias, out))
    return plain if packed is None or not plain.numbers.fixed_point else packed


def linear_parameters(
    site: str, x: QuantParams, weight: QuantizedWeight, bias: Floats | None, out: QuantParams | None
) -> LinearParameters:
    """Fold zero points, the bias and the rounding half of weight [K, N] into int32; out None means float32.

    Shifts are used where every ratio x.scale * weight.scale / out.scale is a power of two, gains and shifts
    where it is one times a whole number (numerics.gain_and_shift), else a 31-bit fixed-point multiplier.
    Proves that no accumulator reaches 2**31.
    """
    sums = _Sums.of(x, weight, bias)
    if out is None:
        _prove(site, sums.reach + np.abs(sums.folded))
        return LinearParameters(sums.folded.astype(np.int32), (sums.scale.astype(np.float32),))
    ratio = sums.scale / float(np.float32(out.scale))
    shifts = [numerics.power_of_two_exponent(r) for r in ratio]
    if all(k is not None and 0 <= k <= 31 for k in shifts):
        shift = np.array(shifts, np.int64)
        folded = sums.folded + _after(shift, out.zero_point)
        _prove(site, sums.reach + np.abs(folded))
        return LinearParameters(folded.astype(np.int32), (shift.astype(np.int32),))
    gained = _with_gains(x, weight, bias, out)
    if gained is not None:
        return gained
    bound = sums.reach + np.abs(sums.folded)
    _prove(site, np.maximum(bound, np.ceil(bound * ratio).astype(np.int64)))
    if ratio.min() < SMALLEST_RATIO:
        raise UnsupportedModelError(
            f"{site}: an output channel's scale is {float(ratio.min()):.3g} of its storage's, below what a "
            f"31-bit multiplier reaches; leave the site in float with ignored=[{site!r}]"
        )
    multipliers = numerics.fixed_point_multiplier(ratio)
    return LinearParameters(sums.folded.astype(np.int32), multipliers, fixed_point=True)


@dataclass(frozen=True, slots=True)
class _Sums:
    """What each output channel adds up: [N] each."""

    scale: Floats  # of the sums
    folded: npt.NDArray[np.int64]  # the bias and the input's zero point, in units of them
    reach: npt.NDArray[np.int64]  # how large the products can get together

    @classmethod
    def of(
        cls, x: QuantParams, weight: QuantizedWeight, bias: Floats | None, gain: Int32s | int = 1
    ) -> _Sums:
        """Return what sums of products, each gain times, are."""
        scale = float(np.float32(x.scale)) * weight.scale.astype(np.float64) / gain
        values = weight.values.astype(np.int64) * gain
        folded = -x.zero_point * values.sum(axis=0)
        if bias is not None:
            steps = np.floor(bias / scale + 0.5)
            folded = folded + np.clip(steps, -(2.0**40), 2.0**40).astype(np.int64)  # refused, not wrapped
        # Padding is the zero point, wherever the limits are.
        largest = max(-x.low, x.high, abs(x.zero_point))
        return cls(scale, folded, np.abs(values).sum(axis=0) * largest)


def _after(shift: npt.NDArray[np.int64], zero_point: int) -> npt.NDArray[np.int64]:
    """Return what is added before a shift: the rounding half, and the zero point of the result."""
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    found: npt.NDArray[np.int64] = half + (np.int64(zero_point) << shift)
    return found


def _with_gains(
    x: QuantParams, weight: QuantizedWeight, bias: Floats | None, out: QuantParams
) -> LinearParameters | None:
    """Return gains and shifts; None where ratios have none, or sums times their gains no room."""
    product_scale = float(np.float32(x.scale)) * weight.scale.astype(np.float64)
    found = numerics.gain_and_shift(product_scale / float(np.float32(out.scale)))
    if found is None or (found[1] < 0).any() or (found[1] > 31).any():
        return None
    sums = _Sums.of(x, weight, bias, found[0])
    folded = sums.folded + _after(found[1].astype(np.int64), out.zero_point)
    if (sums.reach + np.abs(folded)).max(initial=0) >= LIMIT - HEADROOM:
        return None
    gain, shift = (numbers.astype(np.int8) for numbers in found)
    return LinearParameters(folded.astype(np.int32), (gain, shift), gain=True)


def _prove(site: str, bound: npt.NDArray[np.int64]) -> None:
    if bound.max(initial=0) >= LIMIT - HEADROOM:
        raise UnsupportedModelError(
            f"{site}: an accumulator may reach {int(bound.max())}, past int32; "
            f"leave the site in float with ignored=[{site!r}]"
        )


@dataclass(frozen=True, slots=True)
class NormParameters:
    """gain, offset int32 [C]; the rest as numerics.layer_norm takes them."""

    gain: Int32s
    offset: Int32s
    gain_shift: int
    epsilon: int
    limit: int


def norm_parameters(
    site: str, gamma: Floats, beta: Floats, epsilon: float, x: QuantParams, out: QuantParams
) -> NormParameters:
    """Fold gamma, beta, the output scale and zero point into int32 gains and offsets.

    The gain takes as many fraction bits as keep limit * |gain| + |offset| below 2**31.
    """
    if gamma.size > numerics.LAYER_NORM_MAX_CHANNELS:
        raise UnsupportedModelError(
            f"{site}: layer norm over {gamma.size} channels, at most "
            f"{numerics.LAYER_NORM_MAX_CHANNELS} fit 64-bit sums; leave it in float with ignored=[{site!r}]"
        )
    limit = numerics.layer_norm_limit(gamma.size)
    scale = float(np.float32(out.scale))
    for gain_shift in range(26, 0, -1):
        gain = np.floor(gamma / scale * 2.0 ** (gain_shift - numerics.NORMALISED_FRACTION_BITS) + 0.5)
        offset = np.floor((beta / scale + out.zero_point) * 2.0**gain_shift + 0.5) + 2.0 ** (gain_shift - 1)
        if limit * np.abs(gain).max() + np.abs(offset).max() < LIMIT:
            break
    else:
        raise UnsupportedModelError(
            f"{site}: gamma / scale reaches {float(np.abs(gamma / scale).max()):.3g}, too wide for 32-bit "
            f"products; leave it in float with ignored=[{site!r}]"
        )
    unit = 2.0 ** (2 * (numerics.CENTRED_FRACTION_BITS + numerics.STD_EXTRA_BITS))
    fixed_epsilon = epsilon * unit / float(np.float32(x.scale)) ** 2
    if fixed_epsilon > MOST_EPSILON:
        raise UnsupportedModelError(
            f"{site}: epsilon {epsilon:.3g} is more than any variance of inputs stored in steps of "
            f"{x.scale:.3g}, which is no norm; leave it in float with ignored=[{site!r}]"
        )
    whole = round(fixed_epsilon)
    return NormParameters(gain.astype(np.int32), offset.astype(np.int32), gain_shift, whole, limit)


@dataclass(frozen=True, slots=True)
class AttentionParameters:
    """As numerics.attention takes them."""

    score_shift: int
    numerator: int
    norm_shift: int


def attention_parameters(
    q: QuantParams, k: QuantParams, v: QuantParams, out: QuantParams, softmax_scale: float, head_dim: int
) -> AttentionParameters | None:
    """Return the shift of the logits and the normaliser; None if no shift gives either its unit."""
    product = float(np.float32(q.scale)) * float(np.float32(k.scale))
    step = product * softmax_scale * math.log2(math.e) * numerics.STEPS_PER_OCTAVE
    score_shift = numerics.power_of_two_exponent(step)
    if score_shift is None or not numerics.least_score_shift(head_dim) <= score_shift <= 31:
        return None
    ratio = float(np.float32(v.scale)) / float(np.float32(out.scale))
    norm_shift = 30 - math.ceil(math.log2(ratio))
    if not 1 <= norm_shift <= 62:
        return None
    numerator = math.floor(ratio * 2.0**norm_shift + 0.5)
    return AttentionParameters(score_shift, numerator, norm_shift)
