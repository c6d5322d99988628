import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.calibrate.lapq import POWERS, best_power, refine


@settings(deadline=None)
@given(st.floats(1, 5), st.floats(0.01, 100), st.floats(-10, 10))
def test_lowest_point_of_a_parabola_is_found(lowest, curvature, offset):
    losses = [(p, curvature * (p - lowest) ** 2 + offset) for p in POWERS]
    assert best_power(losses) == pytest.approx(lowest, abs=1e-5)


def test_power_stays_within_its_range_and_is_one_of_those_given_where_nothing_is_lowest():
    assert best_power([(2.0, 9.0), (2.5, 8.0), (3.0, 7.01)]) == 5.0
    assert best_power([(2.0, 9.0), (2.5, 8.0), (3.0, 6.5)]) == 3.0  # bends downwards
    assert best_power([(2.0, 4.0), (2.5, 8.0), (3.0, 12.0)]) == 2.0  # a line
    assert best_power([(2.0, 4.0), (3.0, 3.0), (4.0, math.inf)]) == 3.0
    assert best_power([(2.0, 1.0), (2.5, 1.0), (3.0, 1.0)]) == 2.0
    with pytest.raises(ValueError, match="no finite loss"):
        best_power([(2.0, math.nan)])


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 4))
def test_powell_comes_near_the_lowest_point_of_scales_that_depend_on_each_other(seed, size):
    rng = np.random.default_rng(seed)
    scales, wanted = np.exp2(rng.uniform(-8, 4, size)), rng.uniform(-0.7, 0.7, size)
    mixing = np.eye(size) + 0.4 * rng.uniform(-1, 1, (size, size))

    def loss(tried):
        return float(np.sum((mixing @ (np.log2(tried / scales) - wanted)) ** 2))

    found = refine(scales, loss, evaluations=1000)
    assert found.loss == loss(found.scales)
    assert found.start_loss == loss(scales)
    np.testing.assert_allclose(np.log2(found.scales / scales), wanted, atol=0.1)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 60))
def test_never_worse_than_the_start_within_bounds_and_budget(seed, budget):
    rng = np.random.default_rng(seed)
    scales, asked = np.exp2(rng.uniform(-3, 3, 3)), []

    def loss(tried):
        asked.append(tried)
        return rng.choice([rng.uniform(-1, 1), math.nan, math.inf]) if len(asked) > 1 else 0.5

    found = refine(scales, loss, octaves=0.5, evaluations=budget)
    assert found.evaluations == len(asked) <= budget
    assert found.loss <= found.start_loss == 0.5
    assert (np.abs(np.log2(np.array(asked) / scales)) <= 0.5 + 1e-9).all()


def test_nothing_to_refine_and_progress():
    reports = []
    found = refine(np.zeros(0), lambda _: 3.0, progress=lambda *report: reports.append(report))
    assert (found.loss, found.evaluations) == (3.0, 1)
    assert reports[-1] == ("refine scales", 1, 1)
