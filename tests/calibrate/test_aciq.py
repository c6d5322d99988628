import math

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.integrate import quad

from tests.strategies import activations
from tvmq.calibrate.aciq import (
    clipped_range,
    gauss_error,
    gauss_factor,
    laplace_error,
    laplace_factor,
    spread_about_zero,
    spread_of,
)
from tvmq.calibrate.histogram import Histogram

# Of the paper's table, 1 to 8 bits.
LAPLACE = (1.86, 2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89)
GAUSS = (1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92)


def laplace(x):
    return math.exp(-abs(x)) / 2


def normal(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


SHAPES = [(laplace, laplace_error, laplace_factor), (normal, gauss_error, gauss_factor)]


def test_factors_are_those_of_the_published_table():
    for bits, (by_laplace, by_gauss) in enumerate(zip(LAPLACE, GAUSS, strict=True), start=1):
        assert laplace_factor(2**bits) == pytest.approx(by_laplace, abs=0.01)
        assert gauss_factor(2**bits) == pytest.approx(by_gauss, abs=0.01)


@pytest.mark.parametrize(("density", "error", "factor"), SHAPES)
@pytest.mark.parametrize("t", [0.3, 1.5, 4.0])
def test_error_is_the_numeric_integral(density, error, factor, t):
    # Rounding is taken as uniform noise of variance step**2 / 12 over the whole density, as the paper does.
    clipped = 2 * quad(lambda x: (x - t) ** 2 * density(x), t, 60)[0]
    assert error(t, 14) == pytest.approx(clipped + (2 * t / 14) ** 2 / 12, rel=1e-6)


@pytest.mark.parametrize(("density", "error", "factor"), SHAPES)
@pytest.mark.parametrize("steps", [2, 14, 15, 254, 255, 65535])
def test_factor_has_the_least_error(density, error, factor, steps):
    best = factor(steps)
    tried = np.linspace(0.2, 3, 57) * best
    assert error(best, steps) <= min(error(t, steps) for t in tried)


@settings(deadline=None)
@given(activations())
def test_spread_is_that_of_the_values_to_within_a_bin(values):
    histogram = Histogram.of(values)
    spread = spread_of(histogram)
    values = values.astype(np.float64)
    assert spread.mean == pytest.approx(values.mean(), abs=histogram.width / 2)
    deviation = np.abs(values - values.mean()).mean()
    assert spread.deviation == pytest.approx(deviation, abs=histogram.width * 1.5)
    assert spread.sigma == pytest.approx(values.std(), abs=histogram.width)


def test_spread_about_zero_of_a_relu_is_that_of_what_it_let_through():
    values = np.random.default_rng(3).laplace(size=50_000)
    passed = np.abs(values[values > 0])
    spread = spread_about_zero(Histogram.of(np.maximum(values, 0)))
    assert spread.mean == 0
    assert spread.deviation == pytest.approx(passed.mean(), rel=0.01)
    assert spread.sigma == pytest.approx(np.sqrt(np.mean(passed**2)), rel=0.01)


def test_spread_of_one_value_is_next_to_nothing():
    spread = spread_of(Histogram.of(np.full(9, 3.0)))
    assert spread.mean == pytest.approx(3)
    assert spread.deviation < 1e-5
    assert spread.sigma < 1e-5


def test_ranges_by_kind_of_grid():
    def reach(steps):
        return 3.0 if steps == 15 else 4.0

    def clipped(mean, low, high, symmetric=False):
        return clipped_range(mean, reach, low, high, steps=15, symmetric=symmetric)

    assert clipped(1.0, -9.0, 9.0) == (-2.0, 4.0)
    assert clipped(1.0, -1.0, 3.5) == (-1.0, 3.5)  # nothing to clip
    assert clipped(1.0, 0.0, 9.0) == (0.0, 5.0)  # twice the steps, as if there were another half
    assert clipped(-1.0, -9.0, 0.0) == (-5.0, 0.0)
    assert clipped(-1.0, -9.0, 2.0, symmetric=True) == (-4.0, 4.0)
    assert clipped(-1.0, -2.0, 2.0, symmetric=True) == (-2.0, 2.0)
