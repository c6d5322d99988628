"""The arithmetic against its definitions: exact where it is exact, within a derived bound where it is not."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tvmq import numerics
from tvmq.unary import UNARY_FUNCTIONS

int32s = st.integers(-(2**31), 2**31 - 1)
HALF = Fraction(1, 2)


@given(int32s, st.integers(-31, 31))
@example(2**31 - 1, 31)
@example(-(2**31), -31)
def test_round_shift_rounds_to_nearest_with_ties_up(x, shift):
    exact = math.floor(Fraction(x) / Fraction(2) ** shift + HALF)
    assert int(numerics.round_shift(np.int64(x), shift)) == exact


@given(int32s, st.integers(0, 31), st.sampled_from(["uint8", "int8", "int16"]), st.integers(0, 127))
def test_requantize_rounds_then_moves_then_saturates(acc, shift, dtype, zero_point):
    low, high = numerics.INTEGER_RANGE[dtype]
    exact = math.floor(Fraction(acc, 2**shift) + HALF) + zero_point
    result = numerics.requantize(np.array([acc]), shift, zero_point, dtype)
    assert result.dtype == dtype
    assert int(result[0]) == max(low, min(high, exact))


@given(st.floats(2.0**-30, 2.0**29), int32s, st.integers(-128, 127))
def test_fixed_point_is_one_rounding_of_the_product(ratio, acc, zero_point):
    multiplier, shift = numerics.fixed_point_multiplier(np.array([ratio]))
    stored = Fraction(int(multiplier[0]), 2 ** int(shift[0]))
    assert 2**30 <= multiplier[0] < 2**31
    assert abs(stored / Fraction(ratio) - 1) <= Fraction(1, 2**31)
    result = numerics.requantize_fixed_point(np.array([acc]), multiplier, shift, zero_point, "int32")
    low, high = numerics.INTEGER_RANGE["int32"]
    assert int(result[0]) == max(low, min(high, math.floor(acc * stored + HALF) + zero_point))


def test_a_mantissa_that_rounds_up_to_one_keeps_its_31_bits():
    multiplier, shift = numerics.fixed_point_multiplier(np.array([1.0 - 2.0**-40]))
    assert (multiplier[0], shift[0]) == (2**30, 30)


@pytest.mark.parametrize("ratio", [2.0**-33, 2.0**31])
def test_a_ratio_without_fixed_point_form_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio outside"):
        numerics.fixed_point_multiplier(np.array([0.5, ratio]))


@given(st.one_of(st.integers(0, 2**51), st.integers(0, 2**25).map(lambda r: max(0, r * r - 1))))
def test_integer_sqrt_is_within_one_unit(v):
    assert abs(int(numerics.integer_sqrt(np.array([v]))[0]) - math.isqrt(v)) <= 1


@given(st.integers(-40, 40), st.sampled_from([-1e-4, -1.1e-6, -9e-7, 0.0, 9e-7, 1.1e-6, 1e-4]))
def test_a_power_of_two_is_known_through_float32_noise_alone(k, off):
    found = numerics.power_of_two_exponent(2.0 ** (off - k))
    assert found == (k if abs(off) < 1e-6 else None)


@given(
    st.integers(1, numerics.MOST_GAIN), st.integers(-20, 40), st.sampled_from([-1e-4, -5e-7, 0.0, 5e-7, 1e-4])
)
def test_a_gain_is_known_through_float32_noise_alone(gain, k, off):
    found = numerics.gain_and_shift(np.array([gain * 2.0**-k * (1 + off)]))
    if abs(off) > 1e-5:
        assert found is None
        return
    gains, shifts = found
    assert gains[0] % 2 == 1
    assert gains[0] * 2.0 ** -float(shifts[0]) == gain * 2.0**-k


def test_gains_past_the_most_have_no_form():
    assert numerics.gain_and_shift(np.array([1.0, 17 / 32])) is None
    assert numerics.gain_and_shift(np.array([1.0, 15 / 32])) is not None


@pytest.mark.parametrize("name", sorted(UNARY_FUNCTIONS))
@given(st.floats(1e-3, 1.0), st.integers(0, 255), st.floats(1e-3, 1.0), st.integers(0, 255))
def test_a_table_holds_the_nearest_code_of_every_input(name, scale_in, zero_in, scale_out, zero_out):
    table = numerics.unary_table(UNARY_FUNCTIONS[name], scale_in, zero_in, scale_out, zero_out)
    exact = UNARY_FUNCTIONS[name]((np.arange(256.0) - zero_in) * scale_in)
    codes = np.clip(exact / scale_out + zero_out, 0, 255)
    assert table.dtype == np.uint8
    assert np.abs(table - codes).max() <= 0.5 + 1e-9


ROWS = {
    "constant": lambda rng, c: np.full(c, rng.integers(-32768, 32768)),
    "nearly constant": lambda rng, c: rng.integers(-32768, 32767) + rng.integers(0, 2, c),
    "one outlier": lambda rng, c: np.where(np.arange(c) == c // 2, 32767, -32768),
    "both extremes": lambda rng, c: np.where(rng.integers(0, 2, c) == 1, 32767, -32768),
    "normal": lambda rng, c: np.clip(rng.normal(rng.normal(0, 5000), 300, c).round(), -32768, 32767),
}


@pytest.mark.parametrize("kind", ROWS)
@given(st.sampled_from([1, 2, 3, 7, 64, 768, 8191]), st.integers(12, 40), st.integers(0, 2**16))
def test_layer_norm_is_near_the_float_one(kind, channels, epsilon_bits, seed):
    x = ROWS[kind](np.random.default_rng(seed), channels).astype(np.int16)[None]
    normalised = numerics.layer_norm(
        x,
        np.ones(channels, np.int32),
        np.zeros(channels, np.int32),
        gain_shift=0,
        epsilon=2**epsilon_bits,
        limit=numerics.layer_norm_limit(channels),
        dtype="int32",
    )
    centred = x.astype(np.float64) - x.mean(dtype=np.float64)
    variance = (centred**2).mean() + 2.0 ** (epsilon_bits - 20)
    exact = centred / np.sqrt(variance)
    # In units of the centred input: the mean is rounded by 1/2, which widens the variance by at most 1/4;
    # the root and the square under it are rounded by 1/64 each; the reciprocal keeps 15 bits or more.
    std = 16.0 * np.sqrt(variance)
    relative = 1 / (8 * std**2) + 2 / (64 * std) + 2.0**-15
    bound = (np.abs(exact) * relative + 0.5 / std) / (1 - relative) + 2.0**-11
    assert (np.abs(normalised / 1024.0 - exact) <= bound).all()


def test_layer_norm_scales_moves_and_saturates():
    x = np.array([[-300, -100, 100, 300]], np.int16)  # normalised: -+1.342, -+0.447
    gain = np.array([100 << 6] * 4, np.int32)  # 100 steps per unit, gain_shift 16, 10 fraction bits
    offset = np.full(4, (10 << 16) + (1 << 15), np.int32)
    y = numerics.layer_norm(x, gain, offset, gain_shift=16, epsilon=1, limit=1 << 12, dtype="int8")
    assert y.tolist() == [[-124, -35, 55, 127]]  # the last would be 144


def test_softmax_weighs_the_top_fully_and_far_keys_not_at_all():
    table = numerics.softmax_table()
    exact = 255 * 2.0 ** (-np.arange(128) / 14)
    assert np.abs(table - exact).max() <= 0.5
    assert (table[0], table[127]) == (255, 0)


@given(
    st.sampled_from([(1, 1, 4), (3, 5, 8), (2, 197, 16)]),
    st.integers(0, 8),
    st.sampled_from([1, 20, 127]),
    st.integers(0, 2**16),
)
def test_attention_is_near_the_float_one(shape, score_shift, reach, seed):
    queries, keys, depth = shape
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-reach - 1, reach + 1, (n, depth)).astype(np.int8) for n in (queries, keys, keys))
    table, shift = numerics.softmax_table(), 21
    out = numerics.attention(
        q,
        k,
        v,
        table,
        score_shift=score_shift,
        numerator=2**29,
        norm_shift=shift,
        zero_point=0,
        dtype="int32",
    )  # 2**29 / 2**21: in units of v / 256
    octaves = (q.astype(np.float64) @ k.T.astype(np.float64)) / 2**score_shift / numerics.STEPS_PER_OCTAVE
    assume(np.abs(octaves).max() * numerics.STEPS_PER_OCTAVE < 2**15)  # logits are 16-bit numbers
    exact = 255 * 2.0 ** (octaves - octaves.max(-1, keepdims=True))
    real = exact @ v.astype(np.float64) / exact.sum(-1, keepdims=True)
    # Two logits rounded by half a step each, and a table entry rounded by 1/2.
    weight_error = (2.0 ** (1 / numerics.STEPS_PER_OCTAVE) - 1) * exact.sum(-1) + 0.5 * keys
    total = exact.sum(-1) - weight_error
    bound = np.where(total > 0, 2 * weight_error / np.maximum(total, 1), 2.0) * 128
    # The reciprocal is rounded down by less than one of at least 2**29 / (255 * keys).
    bound = bound + 128 * (255 * keys / 2**29) + 1 / 512
    assert (np.abs(out / 256 - real) <= bound[:, None]).all()


def test_attention_divides_by_what_it_weighed():
    """Two keys one octave apart: weights 255 and 128, so 2/3 and 1/3 to within the table."""
    q, k = np.array([[14]], np.int8), np.array([[3], [2]], np.int8)
    v = np.array([[120], [0]], np.int8)
    out = numerics.attention(
        q,
        k,
        v,
        numerics.softmax_table(),
        score_shift=0,
        numerator=2**29,
        norm_shift=29,
        zero_point=7,
        dtype="uint8",
    )
    assert out.tolist() == [[7 + round(120 * 255 / (255 + 128))]]


def masked_attention(biases=(), mask=None, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-128, 128, (4, 2, n, 8)).astype(np.int8) for n in (5, 7, 7))
    numbers = {"score_shift": 6, "numerator": 2**29, "norm_shift": 29, "zero_point": 3, "dtype": "uint8"}
    return (q, k, v), lambda k=k, v=v, b=biases, m=mask: numerics.attention(
        q, k, v, numerics.softmax_table(), **numbers, biases=b, mask=m
    )


def test_a_hidden_key_is_as_if_it_were_not_there():
    (_, k, v), run = masked_attention()
    mask = np.ones((1, 1, 7), np.uint8)
    mask[..., [2, 6]] = 0
    shown = [0, 1, 3, 4, 5]
    assert (run(m=mask) == run(k=k[..., shown, :], v=v[..., shown, :])).all()


def test_a_row_that_sees_no_key_is_zero():
    _, run = masked_attention()
    mask = np.ones((4, 5, 7), np.uint8)
    mask[1, 2] = 0
    out = run(m=mask)
    assert (out[1, :, 2] == 3).all()
    rest = np.ones((4, 5), bool)
    rest[1, 2] = False
    assert (out.swapaxes(1, 2)[rest] == run().swapaxes(1, 2)[rest]).all()


def test_biases_repeat_along_the_batch():
    rng = np.random.default_rng(1)
    window = rng.integers(-200, 200, (2, 1, 5, 7)).astype(np.int16)
    position = rng.integers(-200, 200, (1, 2, 5, 7)).astype(np.int16)
    _, run = masked_attention()
    product = np.tile(window, (2, 1, 1, 1)) + position
    assert (run(b=[window, position]) == run(b=[product])).all()
    assert not (run(b=[window, position]) == run(b=[position])).all()


def test_a_bias_moves_weight_by_octaves():
    """14 steps are one octave: a bias of -14 halves a weight of 255."""
    q, k, v = np.zeros((1, 1, 1, 1), np.int8), np.zeros((1, 1, 2, 1), np.int8), np.array([[[[120], [0]]]])
    out = numerics.attention(
        q,
        k,
        v,
        numerics.softmax_table(),
        score_shift=0,
        numerator=2**29,
        norm_shift=29,
        zero_point=0,
        dtype="int8",
        biases=[np.array([[[[0, -14]]]], np.int16)],
    )
    assert out.item() == round(120 * 255 / (255 + 128))


def test_no_product_overflows_before_it_saturates():
    for head_dim in (1, 16, 64, 1024):
        assert head_dim * 2**14 << -numerics.least_score_shift(head_dim) <= 2**30


def test_logits_saturate_and_a_hidden_key_stays_below():
    (_, k, v), run = masked_attention()
    most, least = (np.full((1, 1, 5, 7), value, np.int16) for value in (2**15 - 1, -(2**15)))
    assert (run(b=[most, most]) == run(b=[most, most, most])).all()
    mask = np.ones((1, 1, 7), np.uint8)
    mask[..., 1:3] = 0
    rest = [0, 3, 4, 5, 6]
    assert (run(b=[least], m=mask) == run(k=k[..., rest, :], v=v[..., rest, :], b=[least[..., rest]])).all()


def test_a_convolution_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (2, 9, 8, 6)), rng.integers(-127, 128, (3, 2, 3, 4))
    found = numerics.convolution(
        x, weight, strides=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2), groups=2, pad_value=7
    )
    padded = torch.nn.functional.pad(torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 1, 2), value=7)
    kernel = torch.tensor(weight).permute(3, 2, 0, 1)
    wanted = torch.nn.functional.conv2d(padded.double(), kernel.double(), None, (2, 1), 0, (1, 2), 2)
    np.testing.assert_array_equal(found, wanted.permute(0, 2, 3, 1).numpy())


def test_padding_is_never_the_largest_and_is_zero_in_a_mean():
    x = np.full((1, 2, 2, 1), -5, np.int8)
    assert (numerics.max_pool(x, (2, 2), (1, 1), (1, 1, 1, 1)) == -5).all()
    multiplier, shift = (int(v) for v in numerics.fixed_point_multiplier(np.array(1 / 4)))
    numbers = {"zero_point": -9, "multiplier": multiplier, "shift": shift, "out_zero_point": 100}
    found = numerics.mean_pool(x, (2, 2), (1, 1), (1, 1, 0, 0), **numbers, dtype="uint8")
    # 4 above the zero point, at 1, 2, 2 and 4 of the 4 places
    assert found.ravel().tolist() == [101, 102, 102, 104]


@given(st.sets(st.integers(0, 255), min_size=1, max_size=40).map(sorted))
@example([0, 255])
@example(list(range(256)))
def test_the_nearest_code_wins_and_ties_go_up(codes):
    found = numerics.nearest_codes(codes)
    assert found.dtype == np.uint8
    for value, code in enumerate(found.tolist()):
        assert code == min(codes, key=lambda other: (abs(other - value), -other))
