"""What is folded into biases, gains and shifts gives the result of the definition, not one like it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq import numerics
from tvmq.errors import UnsupportedModelError
from tvmq.formats import PACKED_BITS, QuantizedWeight, QuantParams
from tvmq.passes.integer_parameters import (
    attention_parameters,
    linear_parameters,
    norm_parameters,
    product_parameters,
    widened,
)

WIDE = QuantParams(2.0**-8, 0, "int16")
seeds = st.integers(0, 2**16)


def a_linear(seed: int, scales: np.ndarray) -> tuple[np.ndarray, QuantizedWeight, np.ndarray]:
    """Return x uint8 [4, 16], a weight [16, 5], and a bias [5]."""
    rng = np.random.default_rng(seed)
    weight = QuantizedWeight(rng.integers(-127, 128, (16, 5)).astype(np.int8), scales.astype(np.float32))
    return rng.integers(0, 256, (4, 16)), weight, rng.normal(0, 3, 5)


def plain_accumulator(x, params, weight, bias) -> np.ndarray:
    """Return the accumulator by its definition: zero point taken off first, the bias rounded to its steps."""
    steps = np.floor(bias / (params.scale * weight.scale.astype(np.float64)) + 0.5).astype(np.int64)
    return (x - params.zero_point) @ weight.values.astype(np.int64) + steps


@given(seeds, st.integers(0, 255), st.integers(0, 255), st.lists(st.integers(0, 20), min_size=5, max_size=5))
def test_a_folded_shift_is_the_requantize_of_the_plain_accumulator(seed, zero_in, zero_out, shifts):
    params, out = QuantParams(2.0**-5, zero_in, "uint8"), QuantParams(2.0**-3, zero_out, "uint8")
    x, weight, bias = a_linear(seed, 2.0 ** (2.0 - np.array(shifts)))  # ratio: 2**-shift
    found = linear_parameters("fc", params, weight, bias, out)
    assert not found.fixed_point
    assert found.rescale[0].tolist() == shifts
    acc = x @ weight.values.astype(np.int64) + found.bias
    result = numerics.saturate(acc >> found.rescale[0], "uint8")
    exact = numerics.requantize(
        plain_accumulator(x, params, weight, bias), np.array(shifts), zero_out, "uint8"
    )
    np.testing.assert_array_equal(result, exact)


@given(seeds, st.integers(2, 8), st.lists(st.integers(-6, 6), min_size=5, max_size=5))
def test_weights_of_few_bits_are_shifted_instead_of_the_product(seed, bits, shifts):
    x, out = QuantParams(2.0**-5, 10, "uint8"), QuantParams(2.0**-3, 3, "uint8")
    largest = 2 ** (bits - 1) - 1
    rng = np.random.default_rng(seed)
    values = rng.integers(-largest, largest + 1, (16, 5)).astype(np.int8)
    values[0] = largest
    weight = QuantizedWeight(values, (2.0 ** (2.0 - np.array(shifts))).astype(np.float32))
    found = widened(x, weight, out)
    np.testing.assert_array_equal(found.values * found.scale, values * weight.scale)
    room = min(shifts) >= -((127 // largest).bit_length() - 1)
    assert linear_parameters("fc", x, found, None, out).fixed_point == (not room)


@given(seeds, st.integers(2, 8), st.lists(st.integers(-6, 6), min_size=5, max_size=5))
def test_few_bits_lie_in_the_highest_of_a_byte(seed, bits, shifts):
    x, out = QuantParams(2.0**-5, 10, "uint8"), QuantParams(2.0**-3, 3, "uint8")
    largest = 2 ** (bits - 1) - 1
    values = np.random.default_rng(seed).integers(-largest - 1, largest + 1, (16, 5)).astype(np.int8)
    values[0] = largest
    weight = QuantizedWeight(values, (2.0 ** (2.0 - np.array(shifts))).astype(np.float32))
    found = product_parameters("fc", x, weight, np.full(5, 0.3), out)
    assert found.bits == (bits if bits in PACKED_BITS else 8)
    np.testing.assert_array_equal(found.weight.values * found.weight.scale, values * weight.scale)
    assert not (found.weight.values & (1 << 8 - found.bits) - 1).any()
    if found.bits < 8:
        assert found.numbers.fixed_point == (min(shifts) < bits - 8)


def test_weights_whose_sums_have_no_room_stay_in_the_lowest_bits():
    x = QuantParams(1.0, 0, "uint8")
    weight = QuantizedWeight(np.full((2**17, 1), 7, np.int8), np.ones(1, np.float32))
    found = product_parameters("fc", x, weight, None, None)
    assert (found.bits, found.weight.values.max()) == (8, 7)
    short = QuantizedWeight(weight.values[:16], weight.scale)
    assert product_parameters("fc", x, short, None, None).bits == 4


def test_the_limits_of_the_input_prove_longer_sums():
    weight = QuantizedWeight(np.full((2**17, 1), 127, np.int8), np.ones(1, np.float32))
    x = QuantParams(1.0, 0, "uint8")
    with pytest.raises(UnsupportedModelError, match="past int32"):
        linear_parameters("fc", x, weight, None, None)
    assert linear_parameters("fc", x.limited(0, 15), weight, None, None).bias.tolist() == [0]


@given(
    seeds,
    st.integers(0, 255),
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(1, 15), st.integers(4, 20)), min_size=5, max_size=5),
)
def test_a_whole_number_of_times_a_power_of_two_takes_a_gain(seed, zero_in, zero_out, ratios):
    params, out = QuantParams(2.0**-5, zero_in, "uint8"), QuantParams(2.0**-3, zero_out, "uint8")
    gains, shifts = np.array(ratios).T
    gains[0] = 13  # of powers of two alone, shifts are enough
    x, weight, bias = a_linear(seed, gains * 2.0 ** (2.0 - shifts))
    found = linear_parameters("fc", params, weight, bias, out)
    assert found.gain
    assert not found.fixed_point
    gain, shift = (values.astype(np.int64) for values in found.rescale)
    assert (gain * 2.0**-shift == gains * 2.0**-shifts).all()
    wide = (x @ weight.values.astype(np.int64)) * gain + found.bias
    finer = QuantizedWeight((weight.values.astype(np.int64) * gain), weight.scale / gain)
    exact = numerics.requantize(plain_accumulator(x, params, finer, bias), shift, zero_out, "uint8")
    np.testing.assert_array_equal(numerics.saturate(wide >> shift, "uint8"), exact)


def test_gains_that_sums_have_no_room_for_are_multipliers():
    x, out = QuantParams(1.0, 0, "uint8"), QuantParams(2.0**10, 0, "uint8")
    values = np.full((2**15, 2), 127, np.int8)
    weight = QuantizedWeight(values, np.array([1.0, 3.0], np.float32))
    found = linear_parameters("fc", x, weight, None, out)
    assert (found.gain, found.fixed_point) == (False, True)
    short = QuantizedWeight(values[: 2**13], weight.scale)
    assert linear_parameters("fc", x, short, None, out).gain


@given(seeds, st.integers(0, 255), st.integers(0, 255), st.floats(1e-4, 0.1))
def test_other_ratios_take_the_fixed_point_form(seed, zero_in, zero_out, scale):
    params, out = QuantParams(0.03, zero_in, "uint8"), QuantParams(0.1, zero_out, "uint8")
    x, weight, bias = a_linear(seed, scale * np.array([1.0, 1.1, 1.2, 1.3, 1.4]))
    found = linear_parameters("fc", params, weight, bias, out)
    assert found.fixed_point
    acc = x @ weight.values.astype(np.int64) + found.bias
    exact = plain_accumulator(x, QuantParams(float(np.float32(0.03)), zero_in, "uint8"), weight, bias)
    np.testing.assert_array_equal(acc, exact)
    codes = numerics.requantize_fixed_point(acc, *found.rescale, zero_out, "int32")
    real = exact * (np.float32(0.03) * weight.scale.astype(np.float64)) / np.float32(0.1) + zero_out
    assert np.abs(codes - real).max() <= 0.5 + 1e-4


def test_float_results_are_one_factor_of_the_accumulator():
    params = QuantParams(0.25, 9, "uint8")
    x, weight, bias = a_linear(1, np.full(5, 0.5))
    found = linear_parameters("fc", params, weight, bias, None)
    acc = x @ weight.values.astype(np.int64) + found.bias
    np.testing.assert_array_equal(acc, plain_accumulator(x, params, weight, bias))
    assert found.rescale[0].dtype == np.float32
    assert found.rescale[0].tolist() == [0.125] * 5


@pytest.mark.parametrize(
    ("inputs", "scale", "bias", "message"),
    [
        (70_000, 0.5, 0.0, r"fc: an accumulator may reach 22\d+, past int32; .*ignored=\['fc'\]"),
        (16, 0.5, 1e30, "fc: an accumulator may reach"),
        (16, 10000.3, 0.0, "fc: an accumulator may reach 5"),  # only after its multiplication
        (16, 1e-10, 0.0, r"fc: an output channel's scale is 1e-10 of its storage's, .*ignored=\['fc'\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(inputs, scale, bias, message):
    one = QuantParams(1.0, 0, "uint8")
    weight = QuantizedWeight(np.full((inputs, 2), 127, np.int8), np.full(2, scale, np.float32))
    with pytest.raises(UnsupportedModelError, match=message):
        linear_parameters("fc", one, weight, np.full(2, bias), one)


@given(seeds, st.integers(2, 300), st.floats(0.01, 3.0), st.integers(-10, 0))
def test_the_integer_norm_is_the_float_one_within_a_step(seed, channels, spread, exponent):
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(1, spread, channels), rng.normal(0, spread, channels)
    x = QuantParams(2.0**-10, 0, "int16")
    codes = rng.normal(rng.normal(0, 3000), 1000, (3, channels)).round().astype(np.int16)
    out = QuantParams(2.0**exponent, 3, "int16")
    found = norm_parameters("norm", gamma, beta, 1e-5, x, out)
    assert found.limit * np.abs(found.gain).max() + np.abs(found.offset.astype(np.int64)).max() < 2**31
    result = numerics.layer_norm(
        codes,
        found.gain,
        found.offset,
        gain_shift=found.gain_shift,
        epsilon=found.epsilon,
        limit=found.limit,
        dtype="int16",
    )
    real = codes * x.scale
    centred = real - real.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    exact = np.clip((normal * gamma + beta) / out.scale + 3, -32768, 32767)
    # Half a step, the gain's rounding, and the norm's own error (test_numerics) seen through the gain.
    gains = np.abs(normal) * 1024 * 0.5 / 2.0**found.gain_shift
    norms = (np.abs(normal) * 2e-3 + 2e-3) * np.abs(gamma) / out.scale
    assert (np.abs(result - exact) <= 0.51 + gains + norms).all()


def test_norms_without_integer_form_are_refused_with_the_way_out():
    ones, out = np.ones(4), QuantParams(0.1, 0, "uint8")
    with pytest.raises(UnsupportedModelError, match=r"norm: layer norm over 8192 channels, at most 8191"):
        norm_parameters("norm", np.ones(8192), np.zeros(8192), 1e-5, WIDE, out)
    with pytest.raises(UnsupportedModelError, match=r"norm: gamma / scale reaches 1e\+10, too wide"):
        norm_parameters("norm", ones * 1e9, ones, 1e-5, WIDE, out)
    with pytest.raises(UnsupportedModelError, match=r"norm: epsilon 1e-05 is more than any variance"):
        norm_parameters("norm", ones, ones, 1e-5, QuantParams(2.0**-30, 0, "int16"), out)


def test_attention_has_a_shift_where_the_logits_can_count_fourteenths_of_octaves():
    unit = float(np.float32(2.0**-4 / np.sqrt(0.125 * np.log2(np.e) * 14)))
    q, plain = QuantParams(unit, 0, "int8"), QuantParams(0.02, 0, "int8")
    found = attention_parameters(q, q, plain, QuantParams(0.03, 0, "uint8"), 0.125, 64)
    assert found is not None
    assert found.score_shift == 8
    assert 2**29 < found.numerator <= 2**30
    assert found.numerator / 2**found.norm_shift == pytest.approx(0.02 / 0.03, rel=1e-7)
    assert attention_parameters(plain, plain, plain, plain, 0.125, 64) is None
    assert attention_parameters(q, q, plain, QuantParams(1e-12, 0, "uint8"), 0.125, 64) is None
