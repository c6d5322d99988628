import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import activations, float_arrays, nonempty_batches
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import (
    OBSERVERS,
    LeastError,
    MinMax,
    Percentile,
    affine_parameters,
    expected_error,
    integer_range,
    observer_for,
    quantization_range,
)
from tvmq.errors import UsageError

methods = st.sampled_from(sorted(OBSERVERS))
bit_widths = st.sampled_from([4, 6, 8, 16])


def quantize_dequantize(x, scale, zero_point, bits, symmetric):
    qmin, qmax = integer_range(bits, symmetric)
    q = np.clip(np.floor(np.float64(x) / scale + 0.5) + zero_point, qmin, qmax)
    return scale * (q - zero_point)


def error_of(histogram, observer, bits, symmetric):
    parameters = affine_parameters(np.array([observer.range(bits, symmetric)]), bits, symmetric)
    return expected_error(histogram, *parameters, bits, symmetric)[0]


@given(nonempty_batches, st.randoms(use_true_random=False), methods, st.booleans())
def test_order_of_updates_changes_no_range(batches, random, method, symmetric):
    first, second = OBSERVERS[method](), OBSERVERS[method]()
    for batch in batches:
        first.update(batch)
    for batch in random.sample(batches, len(batches)):
        second.update(batch)
    assert first.range(8, symmetric) == second.range(8, symmetric)


@given(float_arrays, methods, bit_widths, st.booleans())
def test_range_contains_zero_and_is_symmetric_when_asked(values, method, bits, symmetric):
    low, high = observer_for(method, Histogram.of(values)).range(bits, symmetric)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high


@given(float_arrays, bit_widths, st.booleans())
def test_minmax_quantizer_is_within_half_a_step_everywhere(values, bits, symmetric):
    scale, zero_point = quantization_range(Histogram.of(values), bits, symmetric, "minmax")
    qmin, qmax = integer_range(bits, symmetric)
    assert scale > 0
    assert scale == np.float32(scale)
    assert zero_point == 0 if symmetric else qmin <= zero_point <= qmax
    assert quantize_dequantize(0.0, scale, zero_point, bits, symmetric) == 0.0
    error = np.abs(quantize_dequantize(values, scale, zero_point, bits, symmetric) - values)
    # scale is rounded to float32, so the far end of the grid moves by that much too
    assert (error <= scale * (0.5 + qmax * 2.0**-23)).all()


@given(float_arrays, bit_widths, st.booleans())
def test_least_error_is_never_worse_than_minmax(values, bits, symmetric):
    histogram = Histogram.of(values)
    best = error_of(histogram, LeastError(histogram), bits, symmetric)
    assert best <= error_of(histogram, MinMax(histogram), bits, symmetric)


@given(activations(), bit_widths, st.booleans(), methods)
def test_expected_error_is_the_measured_error_to_within_a_bin(values, bits, symmetric, method):
    # The distance to a grid changes by at most the distance moved, and no value is further than one bin width
    # from the place in its bin where the estimate puts it.
    histogram = Histogram.of(values)
    observer = observer_for(method, histogram)
    scale, zero_point = affine_parameters(np.array(observer.range(bits, symmetric)), bits, symmetric)
    error = quantize_dequantize(values, scale, zero_point, bits, symmetric) - values
    measured, expected = np.sqrt(np.mean(error**2)), np.sqrt(error_of(histogram, observer, bits, symmetric))
    assert abs(measured - expected) <= histogram.width * 1.0001


@given(activations(), st.booleans(), st.sampled_from(["minmax", "percentile"]))
def test_more_bits_give_a_finer_grid(values, symmetric, method):
    histogram = Histogram.of(values)
    scales = [quantization_range(histogram, bits, symmetric, method)[0] for bits in range(2, 17)]
    assert scales == sorted(scales, reverse=True)


@given(activations(), st.booleans())
def test_more_bits_are_never_worse_by_least_error(values, symmetric):
    # Not so for minmax: with an outlier, both grids may be too coarse for the bulk, and the finer one can
    # happen to lie worse.
    histogram = Histogram.of(values)
    errors = [error_of(histogram, LeastError(histogram), bits, symmetric) for bits in (4, 8, 16)]
    assert errors[1] <= errors[0] * (1 + 1e-9)
    assert errors[2] <= errors[1] * (1 + 1e-9)


def test_percentile_clips_an_outlier_that_minmax_keeps():
    values = np.append(np.linspace(-1, 1, 20_000), 64.0)
    histogram = Histogram.of(values)
    assert MinMax(histogram).range(8, False)[1] == 64.0
    assert Percentile(histogram).range(8, False)[1] < 1.1
    assert LeastError(histogram).range(4, False)[1] < 64.0


def test_one_sided_values_get_all_levels_of_uint8():
    histogram = Histogram.of(np.linspace(0, 51, 999))
    assert quantization_range(histogram, 8, False, "minmax") == (pytest.approx(0.2), 0)
    assert quantization_range(histogram, 8, True, "minmax") == (pytest.approx(51 / 127), 0)


@pytest.mark.parametrize("method", sorted(OBSERVERS))
def test_nothing_seen_or_only_zeros_gives_scale_one(method):
    for histogram in (Histogram.empty(), Histogram.of(np.zeros(3))):
        assert quantization_range(histogram, 8, False, method) == (1.0, 0)


def test_stats_are_json():
    stats = MinMax(Histogram.of(np.array([-1.0, 3.0]))).stats(8, False).with_channels(np.array([1, 3], "f4"))
    assert json.loads(json.dumps(stats.as_json())) == {
        "low": -1.0,
        "high": 3.0,
        "minimum": -1.0,
        "maximum": 3.0,
        "count": 2,
        "absmax_per_channel": [1.0, 3.0],
    }


def test_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(
        UsageError, match=r"'entropy' is unknown; choose one of \['minmax', 'mse', 'percentile'\]"
    ):
        observer_for("entropy", Histogram.empty())
