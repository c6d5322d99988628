import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq import numerics
from tvmq.formats import QuantParams
from tvmq.passes.integer_parameters import linear_parameters
from tvmq.quantize.weights import (
    QMAX,
    corrected_bias,
    largest_value,
    quantize_weight,
    scale_candidates,
    smallest_scales,
)

exponents = st.integers(-20, 20)


def layer(seed: int, inputs: int = 12, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [K, N] with channels of very different size, and the Gram matrix [K, K] of an input."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inputs, outputs)) * 2.0 ** rng.integers(-6, 3, outputs)
    x = rng.standard_normal((50, inputs)) * np.exp(rng.standard_normal(inputs))
    return weight, (x.T @ x / 50).astype(np.float32)


def output_error(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> np.ndarray:
    values = np.clip(np.floor(weight / scale + 0.5), -QMAX, QMAX)
    delta = values * scale - weight
    return np.asarray((delta * (gram @ delta)).sum(0))


@given(seeds, st.floats(0.5, 100))
@example(14595, 1.0)
@example(65535, 7.125)  # a scale four times the finest that clips nothing would round luckier still
def test_power_of_two_scales_and_none_better_beside_them(seed: int, ratio: float):
    weight, gram = layer(seed)
    ratio *= float(np.abs(weight).max()) / QMAX * 2
    found = quantize_weight(weight, gram, ratio)
    exponent = np.log2(ratio / found.scale.astype(np.float64))
    np.testing.assert_allclose(exponent, np.rint(exponent), atol=1e-5)
    error = output_error(weight, gram, found.scale.astype(np.float64))
    for neighbour in (0.5, 2.0):
        beside = output_error(weight, gram, found.scale * neighbour)
        allowed = found.scale * neighbour <= ratio * 1.0001  # a shift of 0 or more
        allowed &= np.abs(weight).max(0) > 0.25 * QMAX * found.scale * neighbour  # coarser ones are not tried
        # Of a largest weight that just fits, rounding decides where the window of exponents begins.
        fits = np.log2(QMAX * ratio / np.abs(weight).max(0))
        allowed &= np.abs(fits - np.rint(fits)) > 1e-9
        assert (error <= beside * 1.001 + 1e-12)[allowed].all()


@given(seeds, st.integers(2, 7), st.floats(1.0, 100))
def test_few_bits_take_scales_with_gains_from_what_clips_nothing_on(seed: int, bits: int, coarseness: float):
    weight, _ = layer(seed)
    widest = np.abs(weight).max(0) / largest_value(bits)
    ratio = float(widest.max()) * coarseness
    candidates = np.stack(scale_candidates(weight, ratio, 0.0, bits))
    assert numerics.gain_and_shift(candidates / ratio) is not None
    assert (candidates[0] >= widest * (1 - 1e-9)).all()
    assert (candidates[0] <= widest * 9 / 8 * (1 + 1e-9)).all()
    assert (np.diff(candidates, axis=0) < 0).all()
    assert (candidates[-1] < 0.67 * widest).all()
    powers = np.stack(scale_candidates(weight, ratio, 0.0, bits, gained=False)) / ratio
    assert (np.log2(powers) % 1 == 0).all()


@given(seeds)
def test_values_are_the_nearest_of_their_scale(seed: int):
    weight, gram = layer(seed)
    for metric, ratio in ((gram, None), (None, None), (None, float(np.abs(weight).max()))):
        found = quantize_weight(weight, metric, ratio)
        step = found.scale.astype(np.float64)
        assert found.values.dtype == np.int8
        assert np.abs(found.values.astype(int)).max() <= QMAX
        inside = np.abs(weight) <= QMAX * step
        assert (np.abs(found.values * step - weight)[inside] <= (0.5001 * step + 0 * weight)[inside]).all()


@given(seeds, st.integers(2, 8), st.booleans())
def test_no_value_needs_more_bits_than_it_has(seed: int, bits: int, free: bool):
    weight, gram = layer(seed)
    found = quantize_weight(weight, gram, None if free else float(np.abs(weight).max()), bits=bits)
    assert found.bits == bits
    assert np.abs(found.values.astype(int)).max() <= largest_value(bits)


@given(seeds)
def test_more_bits_never_give_a_larger_error(seed: int):
    weight, gram = layer(seed)
    plain, outputs = [], []
    for bits in range(2, 9):
        own = quantize_weight(weight, None, float(np.abs(weight).max()), bits=bits)
        delta = own.values * own.scale.astype(np.float64) - weight
        plain.append((delta**2).sum(0))
        own = quantize_weight(weight, gram, float(np.abs(weight).max()), bits=bits)
        delta = own.values * own.scale.astype(np.float64) - weight
        outputs.append(float((delta * (gram @ delta)).sum()))
    # What scales are tried differs from bits to bits, and of 8 bits they are powers of two alone.
    assert all((more <= less + 1e-9).all() for less, more in zip(plain, plain[2:], strict=False))
    # Rounding each weight to the nearest makes no promise of a sum of them: three bits more do in practice.
    assert all(more < less for less, more in zip(outputs, outputs[3:], strict=False))


def test_a_ratio_that_needs_a_left_shift_is_reached_by_values_that_leave_room_for_it():
    weight = np.array([[0.7, -0.7], [0.2, 0.1]])
    found = quantize_weight(weight, None, 0.1 / 16, bits=4)  # a step of 0.1 is 16 times the ratio
    np.testing.assert_allclose(np.log2(found.scale / (0.1 / 16)) % 1, 0, atol=1e-5)
    assert found.scale.max() > 0.05
    wide = quantize_weight(weight, None, 0.1 / 16, bits=8)
    np.testing.assert_allclose(wide.scale, 0.1 / 16, rtol=1e-5)  # with 8 bits, no shift is needed


def test_weights_too_large_for_the_ratio_are_not_clipped():
    weight = np.array([[1.0, 3.0]])
    found = quantize_weight(weight, None, 0.01)
    np.testing.assert_allclose(found.values * found.scale, weight, rtol=0.01)


@pytest.mark.parametrize("requantize", ["pot", "fixed_point", "float"])
@given(seed=seeds, bias=exponents, output=exponents, pruned=st.booleans())
@example(seed=0, bias=0, output=0, pruned=True)
def test_no_accumulator_passes_int32(requantize: str, seed: int, bias: int, output: int, pruned: bool):
    weight, gram = layer(seed)
    if pruned:
        weight[:, 1] = 0
        weight[:, 2] *= 1e-9
    addend = np.full(weight.shape[1], 2.0**bias)
    x = QuantParams(float(np.float32(0.02)), 117, "uint8")
    # The output's range is at least that of the bias and of one input step times the largest weight.
    wide = max(2.0**bias, float(np.abs(weight).max())) * 2.0 ** abs(output)
    out = None if requantize == "float" else QuantParams(float(np.float32(wide / 100)), 131, "uint8")
    ratio = out.scale / x.scale if out is not None and requantize == "pot" else None
    found = quantize_weight(weight, gram, ratio, smallest_scales(weight, addend, x, out))
    parameters = linear_parameters("fc", x, found, addend, out)  # raises where int32 may overflow
    assert parameters.fixed_point == (requantize == "fixed_point")


@given(seeds)
def test_the_corrected_bias_makes_the_mean_output_exact(seed: int):
    weight, gram = layer(seed)
    mean = np.random.default_rng(seed).standard_normal(weight.shape[0]).astype(np.float32)
    bias = np.ones(weight.shape[1])
    found = quantize_weight(weight, gram, None)
    corrected = corrected_bias(bias, weight, found, mean)
    rounded = found.values * found.scale.astype(np.float64)
    np.testing.assert_allclose(mean @ rounded + corrected, mean @ weight + bias, rtol=1e-5, atol=1e-5)
