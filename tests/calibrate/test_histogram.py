import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import float_arrays, nonempty_batches
from tvmq.calibrate.histogram import BINS, Histogram


def merged(batches):
    result = Histogram.empty()
    for batch in batches:
        result = result.merge(Histogram.of(batch))
    return result


def assert_same(a, b):
    np.testing.assert_array_equal(a.counts, b.counts)
    assert (a.minimum, a.maximum) == (b.minimum, b.maximum)
    assert a.total == pytest.approx(b.total, rel=1e-9, abs=1e-6 * max(abs(a.minimum), abs(a.maximum)))


@given(nonempty_batches, st.randoms(use_true_random=False))
def test_order_of_batches_changes_nothing(batches, random):
    shuffled = random.sample(batches, len(batches))
    assert_same(merged(batches), merged(shuffled))


@given(nonempty_batches)
def test_merging_equals_counting_at_once(batches):
    assert_same(merged(batches), Histogram.of(np.concatenate(batches)))


@given(float_arrays, float_arrays, float_arrays)
def test_merge_is_associative_with_empty_as_neutral(a, b, c):
    a, b, c = map(Histogram.of, (a, b, c))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(Histogram.empty()), a)
    assert_same(Histogram.empty().merge(a), a)


@given(float_arrays)
def test_every_value_is_counted_in_its_bin(values):
    histogram = Histogram.of(values)
    edges, counts = histogram.occupied()
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    assert len(counts) <= BINS
    assert histogram.count == counts.sum() == values.size
    assert math.frexp(histogram.width)[0] == 0.5
    expected, _ = np.histogram(
        values.astype(np.float64), np.append(edges[:-1], np.nextafter(edges[-1], -np.inf))
    )
    np.testing.assert_array_equal(counts, expected)


def test_bins_are_as_fine_as_the_memory_allows():
    edges, _ = Histogram.of(torch.linspace(-3, 3, 1000)).occupied()
    assert BINS / 2 <= len(edges) - 1 <= BINS


def test_infinities_are_left_out_and_nan_is_refused():
    histogram = Histogram.of(torch.tensor([1.0, -math.inf, 2.0, math.inf]))
    assert (histogram.minimum, histogram.maximum, histogram.count) == (1.0, 2.0, 2)
    assert Histogram.of(torch.tensor([-math.inf])).count == 0
    with pytest.raises(ValueError, match="NaN"):
        Histogram.of(torch.tensor([1.0, math.nan]))


def test_quantile_interpolates_within_the_data():
    histogram = Histogram.of(np.arange(10001, dtype=np.float64))
    assert histogram.quantile(0.0) == 0.0
    assert histogram.quantile(1.0) == 10000.0
    assert histogram.quantile(0.9999) == pytest.approx(9999, abs=histogram.width)
    assert Histogram.of(np.full(7, 3.25)).quantile(0.5) == 3.25
