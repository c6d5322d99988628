import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.calibrate.calibration import InputMoments
from tvmq.quantize.feedback import BLOCK, DAMPING_FEW_ROWS, compensated, feedback_of
from tvmq.quantize.weights import QMAX, largest_value, quantize_weight


def moments_of(x: np.ndarray) -> InputMoments:
    return InputMoments((x.T @ x / len(x)).astype(np.float32), x.mean(0).astype(np.float32), len(x))


def layer(seed: int, inputs: int, rank: int, outputs: int = 6) -> tuple[np.ndarray, InputMoments]:
    """Return weight [inputs, outputs] and the moments of inputs that vary in `rank` directions, nearly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, rank)) @ rng.standard_normal((rank, inputs))
    x += 0.05 * rng.standard_normal(x.shape) + rng.standard_normal(inputs)
    return rng.standard_normal((inputs, outputs)), moments_of(x)


def output_error(weight: np.ndarray, quantized, metric: np.ndarray) -> np.ndarray:
    delta = quantized.values * quantized.scale.astype(np.float64) - weight
    return np.asarray((delta * (metric @ delta)).sum(0))


@given(seeds)
def test_no_channel_gets_worse_and_no_value_leaves_the_range(seed: int):
    weight, moments = layer(seed, inputs=12, rank=12)
    nearest = quantize_weight(weight, moments.gram, None)
    found = compensated(weight, nearest, feedback_of(moments, centred=False))
    before, after = (output_error(weight, q, moments.gram) for q in (nearest, found))
    assert (after <= before * 1.001 + 1e-9).all()
    assert np.abs(found.values.astype(int)).max() <= QMAX
    np.testing.assert_array_equal(found.scale, nearest.scale)


def test_correlated_inputs_leave_a_fraction_of_the_error():
    inputs = BLOCK + 20  # errors pass from block to block
    weight, moments = layer(0, inputs=inputs, rank=inputs // 4)
    nearest = quantize_weight(weight, moments.gram, None)
    covariance = moments.gram - np.outer(moments.mean, moments.mean)
    found = compensated(weight, nearest, feedback_of(moments, centred=True))
    error = output_error(weight, found, covariance).sum() / output_error(weight, nearest, covariance).sum()
    assert error < 0.3


@given(seeds)
def test_equals_the_published_recursion(seed: int):
    """GPTQ's definition: after each row, the inverse loses it by one step of Gaussian elimination."""
    weight, moments = layer(seed, inputs=7, rank=7, outputs=1)
    nearest = quantize_weight(weight, moments.gram, None)
    hessian = moments.gram.astype(np.float64)
    damping = max(0.01, DAMPING_FEW_ROWS * 7 / moments.rows)
    hessian = hessian + np.eye(7) * damping * hessian.diagonal().mean()
    inverse, left, expected = np.linalg.inv(hessian), weight[:, 0].copy(), np.zeros(7)
    for i in np.argsort(-hessian.diagonal(), kind="stable"):
        step = float(nearest.scale[0])
        expected[i] = np.clip(np.floor(left[i] / step + 0.5), -QMAX, QMAX)
        left -= (left[i] - expected[i] * step) / inverse[i, i] * inverse[i]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    found = compensated(weight, nearest, feedback_of(moments, centred=False))
    kept = np.array_equal(found.values, nearest.values)
    assert kept or np.abs(found.values[:, 0] - expected).max() <= 1  # float32 may turn a tie


@given(seeds, st.integers(2, 7))
def test_few_bits_stay_few(seed: int, bits: int):
    weight, moments = layer(seed, inputs=12, rank=5)
    nearest = quantize_weight(weight, moments.gram, None, bits=bits)
    found = compensated(weight, nearest, feedback_of(moments, centred=False))
    assert found.bits == bits
    assert np.abs(found.values.astype(int)).max() <= largest_value(bits)


def test_independent_inputs_keep_the_nearest_values():
    weight, _ = layer(3, inputs=9, rank=9)
    moments = InputMoments(np.diag(np.arange(1.0, 10)).astype(np.float32), np.zeros(9, np.float32), 1000)
    nearest = quantize_weight(weight, moments.gram, None)
    found = compensated(weight, nearest, feedback_of(moments, centred=False))
    np.testing.assert_array_equal(found.values, nearest.values)


def test_inputs_that_never_vary_have_no_feedback():
    x = np.ones((50, 4)) * np.arange(4)
    assert feedback_of(moments_of(np.zeros((50, 4))), centred=False) is None
    assert feedback_of(moments_of(x), centred=False) is not None


@given(seeds, st.floats(1, 8))
def test_a_mean_far_above_the_variation_is_survived(seed: int, decades: float):
    rng = np.random.default_rng(seed)
    moments = moments_of(10.0**decades + rng.standard_normal((64, 16)))
    weight = rng.standard_normal((16, 8))
    nearest = quantize_weight(weight, moments.gram, None)
    feedback = feedback_of(moments, centred=True)
    if feedback is not None:
        found = compensated(weight, nearest, feedback)
        assert np.abs(found.values.astype(int) - nearest.values).max() <= 64  # no runaway
