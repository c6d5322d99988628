from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import activations
from tvmq.calibrate.grids import affine_parameters, range_with_zero
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.range_errors import divergence, expected_error
from tvmq.calibrate.range_search import RangeSearch

BITS = 4
GAUSS = np.random.default_rng(1).standard_normal(20_000)
DATA = {
    "normal": GAUSS,
    "relu": np.maximum(GAUSS, 0),
    "gelu": GAUSS * 1.5 / (1 + np.exp(-1.702 * 1.5 * GAUSS)),
    "one outlier on one side": np.append(GAUSS, [40.0, -5.0]),
    "shifted": GAUSS + 3,
    "two heaps": np.append(GAUSS, 0.1 * GAUSS + 12),
    "negative": -np.exp(GAUSS),
}
ERRORS = {
    "mse": expected_error,
    "lp 2.4": partial(expected_error, p=2.4),
    "lp 3": partial(expected_error, p=3.0),
    "lp 4": partial(expected_error, p=4.0),
    "kl": divergence,
}


def brute_force(error, histogram, symmetric, count=48):
    """Return the least error of all ranges with ends on an even grid over the values seen."""
    low, high = range_with_zero(histogram.minimum, histogram.maximum, symmetric)
    parts = np.arange(1, count + 1) / count
    if symmetric:
        ranges = np.stack([low * parts, high * parts], 1)
    else:
        ends = np.meshgrid(np.append(0, parts) * low, np.append(0, parts) * high)
        ranges = np.stack([end.ravel() for end in ends], 1)
        ranges = np.unique(ranges[ranges[:, 0] < ranges[:, 1]], axis=0)
    chunks = np.array_split(ranges, -(-len(ranges) // 16))
    return min(
        error(histogram, *affine_parameters(chunk, BITS, symmetric), BITS, symmetric).min()
        for chunk in chunks
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", ERRORS)
def test_search_is_as_good_as_trying_everything(name, data, symmetric):
    histogram = Histogram.of(DATA[data])
    start = range_with_zero(histogram.minimum, histogram.maximum, symmetric)
    search = RangeSearch(ERRORS[name], histogram, BITS, symmetric, start)
    search.run()
    best = brute_force(ERRORS[name], histogram, symmetric)
    assert search.error <= best * 1.1  # 0.4 dB; most are better than this brute force


@settings(deadline=None, max_examples=40)
@given(activations(), st.booleans(), st.sampled_from(sorted(ERRORS)))
def test_range_contains_zero_and_is_never_worse_than_the_start(values, symmetric, name):
    histogram = Histogram.of(values)
    start = range_with_zero(histogram.minimum, histogram.maximum, symmetric)
    search = RangeSearch(ERRORS[name], histogram, BITS, symmetric, start)
    first = search.error
    search.run()
    assert search.error <= first
    low, high = search.best
    assert low <= 0 <= high
    assert low == -high or not symmetric
    found = ERRORS[name](histogram, *affine_parameters(search.best[None], BITS, symmetric), BITS, symmetric)
    assert found[0] == pytest.approx(search.error, rel=1e-12)


def test_only_a_better_offer_is_taken():
    histogram = Histogram.of(GAUSS)
    search = RangeSearch(expected_error, histogram, BITS, True, (-5.0, 5.0))
    search.offer(np.array([[-500.0, 500.0], [-900.0, 900.0]]))
    assert search.best.tolist() == [-5, 5]
    search.offer(np.array([[-500.0, 500.0], [-2.5, 2.5]]))
    assert search.best.tolist() == [-2.5, 2.5]
