import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import activations
from tvmq.calibrate.grids import affine_parameters, integer_range
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.range_errors import SMOOTHING, divergence, expected_error


def quantized(x, scale, zero_point, bits, symmetric):
    qmin, qmax = integer_range(bits, symmetric)
    return scale * (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point)


@settings(deadline=None, max_examples=60)
@given(
    activations(),
    st.sampled_from([2.0, 2.4, 3.0, 4.0]),
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.floats(0.05, 1.5),
)
def test_expected_error_is_the_numeric_integral(values, p, bits, symmetric, part):
    histogram = Histogram.of(values)
    edges, counts = histogram.occupied()
    low, high = min(edges[0], 0.0) * part, max(edges[-1], 0.0) * part
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale, zero_point = affine_parameters(np.array([[low, high]]), bits, symmetric)
    places = (np.arange(64) + 0.5) / 64
    x = edges[:-1, None] + places * np.diff(edges)[:, None]
    error = np.abs(x - quantized(x, scale[0], zero_point[0], bits, symmetric)) ** p
    expected = (error.mean(1) * counts).sum() / counts.sum()
    found = expected_error(histogram, scale, zero_point, bits, symmetric, p=p)
    assert found == pytest.approx(expected, rel=2e-2, abs=1e-3 * (histogram.width + scale[0] * 1e-3) ** p)


def without_spike(counts, edges):
    for i, edge in enumerate(edges[:-1]):
        if edge == 0:
            beside = [counts[j] for j in (i - 1, i + 1) if 0 <= j < len(counts)]
            counts[i] = min([counts[i], max(beside, default=0.0)])
    return counts


def divergence_by_definition(edges, counts, scale, zero_point, bits, symmetric):
    """Return TensorRT's divergence, bin by bin and level by level."""
    qmin, qmax = integer_range(bits, symmetric)
    counts = without_spike([float(c) for c in counts], edges)
    if sum(counts) == 0:
        return 0.0
    original, levels, low, high = {}, {}, 0.0, 0.0
    for i, count in enumerate(counts):
        centre, width = (edges[i] + edges[i + 1]) / 2, edges[i + 1] - edges[i]
        if centre < (qmin - zero_point - 0.5) * scale - width:
            low += count
        elif centre >= (qmax - zero_point + 0.5) * scale + width:
            high += count
        else:
            original[i] = count
            level = min(max(round(centre / scale) + zero_point, qmin), qmax)
            levels.setdefault(level, []).append(i)
    if sum(original.values()) == 0:
        return math.inf
    spread = dict.fromkeys(original, 0.0)
    for bins in levels.values():
        full = [i for i in bins if counts[i] > 0]
        for i in full:
            spread[i] = sum(counts[j] for j in full) / len(full)
    original[min(original)] += low
    original[max(original)] += high
    seen = [i for i in original if original[i] > 0]
    total, spread_total = sum(original.values()), sum(spread.values())
    result = 0.0
    for i in seen:
        q = (1 - SMOOTHING) * spread[i] / spread_total + SMOOTHING / len(seen)
        result += original[i] / total * math.log(original[i] / total / q)
    return result


@settings(deadline=None, max_examples=60)
@given(activations(), st.sampled_from([2, 4, 6]), st.booleans(), st.floats(0.05, 1.2), st.floats(0.05, 1.2))
def test_divergence_is_its_definition(values, bits, symmetric, low, high):
    histogram = Histogram.of(values)
    edges, counts = histogram.occupied()
    ends = np.array([min(edges[0], 0.0) * low, max(edges[-1], 0.0) * high])
    ends = np.array([-np.abs(ends).max(), np.abs(ends).max()]) if symmetric else ends
    scale, zero_point = affine_parameters(ends[None], bits, symmetric)
    found = divergence(histogram, scale, zero_point, bits, symmetric)[0]
    if scale[0] < histogram.width:
        assert found == math.inf
    else:
        expected = divergence_by_definition(edges, counts, scale[0], int(zero_point[0]), bits, symmetric)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found >= -1e-12


def test_one_bin_per_level_and_nothing_clipped_diverges_by_nothing():
    histogram = Histogram.of(np.repeat(np.arange(1, 16) + 0.5, np.arange(1, 16)).astype("f4"))
    width = histogram.width
    assert divergence(histogram, np.array([width]), np.array([0.0]), 16, False)[0] == pytest.approx(
        0, abs=1e-6
    )


def test_zeros_of_a_relu_do_not_narrow_the_range():
    rng = np.random.default_rng(0)
    positive = np.abs(rng.standard_normal(20_000))
    grids = affine_parameters(np.array([[0.0, high] for high in np.linspace(0.5, 4, 30)]), 4, False)
    with_zeros = Histogram.of(np.append(positive, np.zeros(80_000)))
    found = divergence(with_zeros, *grids, 4, False)
    assert found.argmin() == divergence(Histogram.of(positive), *grids, 4, False).argmin()


def test_all_zeros_diverge_by_nothing():
    assert divergence(Histogram.of(np.zeros(5)), np.array([1.0]), np.array([0.0]), 8, False) == [0.0]
