import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import activations, float_arrays, nonempty_batches
from tvmq.calibrate.grids import affine_parameters, integer_range
from tvmq.calibrate.histogram import BINS, Histogram
from tvmq.calibrate.observers import (
    OBSERVERS,
    POWER,
    Aciq,
    LeastError,
    MinMax,
    Percentile,
    observer_for,
    quantization_range,
)
from tvmq.calibrate.range_errors import divergence, expected_error
from tvmq.errors import UsageError

methods = st.sampled_from(sorted(OBSERVERS))
bit_widths = st.sampled_from([4, 6, 8, 16])


def quantize_dequantize(x, scale, zero_point, bits, symmetric):
    qmin, qmax = integer_range(bits, symmetric)
    q = np.clip(np.floor(np.float64(x) / scale + 0.5) + zero_point, qmin, qmax)
    return scale * (q - zero_point)


def error_of(histogram, observer, bits, symmetric, error=expected_error, **options):
    parameters = affine_parameters(np.array([observer.range(bits, symmetric)]), bits, symmetric)
    return error(histogram, *parameters, bits, symmetric, **options)[0]


@settings(deadline=None, max_examples=40)
@given(nonempty_batches, st.randoms(use_true_random=False), methods, st.booleans())
def test_order_of_updates_changes_no_range(batches, random, method, symmetric):
    first, second = OBSERVERS[method](), OBSERVERS[method]()
    for batch in batches:
        first.update(batch)
    for batch in random.sample(batches, len(batches)):
        second.update(batch)
    assert first.range(8, symmetric) == second.range(8, symmetric)
    merged = Histogram.of(np.concatenate(batches))
    assert observer_for(method, merged).range(8, symmetric) == first.range(8, symmetric)


@settings(deadline=None, max_examples=60)
@given(float_arrays, methods, bit_widths, st.booleans())
def test_range_contains_zero_and_is_symmetric_when_asked(values, method, bits, symmetric):
    low, high = observer_for(method, Histogram.of(values)).range(bits, symmetric)
    assert low <= 0 <= high
    assert np.isfinite([low, high]).all()
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


# What each search makes small.
SEARCHED = {
    "mse": expected_error,
    "lp": partial(expected_error, p=POWER),
    "kl": divergence,
    "aciq": expected_error,
}


@settings(deadline=None, max_examples=40)
@given(float_arrays, bit_widths, st.booleans(), st.sampled_from(sorted(SEARCHED)))
def test_searches_are_never_worse_than_minmax_by_what_they_search_for(values, bits, symmetric, method):
    histogram, error = Histogram.of(values), SEARCHED[method]
    best = error_of(histogram, observer_for(method, histogram), bits, symmetric, error)
    assert best <= error_of(histogram, MinMax(histogram), bits, symmetric, error) * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
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


@settings(deadline=None, max_examples=20)
@given(activations(), st.booleans(), st.sampled_from([2.0, POWER, 3.0]))
def test_more_bits_are_never_worse_by_least_error(values, symmetric, p):
    # Not so for minmax: with an outlier, both grids may be too coarse for the bulk, and the finer one can
    # happen to lie worse.
    histogram = Histogram.of(values)
    observer = LeastError(histogram, p)
    errors = [error_of(histogram, observer, bits, symmetric, p=p) for bits in (4, 6, 8, 16)]
    for fewer, more in pairwise(errors):
        assert more <= fewer * (1 + 1e-9)


@pytest.mark.parametrize("method", sorted(OBSERVERS))
def test_memory_does_not_grow_with_data(method):
    observer, rng = OBSERVERS[method](), np.random.default_rng(0)
    for _ in range(5):
        observer.update(rng.standard_normal(50_000))
        assert observer.histogram.counts.nbytes == BINS * 8
    assert {slot for kind in type(observer).__mro__ for slot in getattr(kind, "__slots__", ())} <= {
        "histogram",
        "percent",
        "p",
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("shape", ["laplace", "normal", "exponential", "folded normal"])
def test_aciq_is_near_the_best_range_for_the_shapes_it_assumes(shape, bits, symmetric):
    rng = np.random.default_rng(7)
    draw = rng.laplace if shape in ("laplace", "exponential") else rng.standard_normal
    values = draw(size=20_000) if shape in ("laplace", "normal") else np.abs(draw(size=20_000))
    histogram = Histogram.of(values)
    reach = np.abs(values).max() * np.arange(1, 201) / 200
    ranges = np.stack([reach * (-1.0 if symmetric or values.min() < 0 else 0.0), reach], 1)
    parameters = affine_parameters(ranges, bits, symmetric)
    brute = min(measured_error(values, *each, bits, symmetric) for each in zip(*parameters, strict=True))
    found = affine_parameters(np.array(Aciq(histogram).range(bits, symmetric)), bits, symmetric)
    assert measured_error(values, *found, bits, symmetric) <= brute * 1.1


def test_aciq_takes_the_shape_that_the_values_have():
    values = np.random.default_rng(7).laplace(size=200_000)
    observer = Aciq(Histogram.of(values))
    laplace, normal = observer.candidates(8, True)[:2]
    assert observer.range(8, True) == laplace
    errors = [
        measured_error(values, *affine_parameters(np.array(ends), 8, True), 8, True)
        for ends in (laplace, normal)
    ]
    assert errors[1] > 10 * errors[0]


def measured_error(values, scale, zero_point, bits, symmetric):
    return np.mean((quantize_dequantize(values, scale, zero_point, bits, symmetric) - values) ** 2)


@pytest.mark.parametrize("method", sorted(OBSERVERS))
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_values_of_one_size_are_kept(method, bits):
    for values in ([5.0], [-5.0], [0.0, 5.0], [-5.0, 5.0, 5.0], [5.0] * 1000, [2.0**-140], [-3e38]):
        array = np.array(values, np.float32)
        for symmetric in (False, True):
            low, high = observer_for(method, Histogram.of(array)).range(bits, symmetric)
            scale, zero_point = affine_parameters(np.array([low, high]), bits, symmetric)
            error = quantize_dequantize(array, scale, zero_point, bits, symmetric) - array
            assert np.abs(error).max() <= max(np.abs(array).max() * 2.0**-bits * 2, 2.0**-126)


@pytest.mark.parametrize("method", sorted(OBSERVERS))
def test_infinities_are_masks_and_change_nothing(method):
    values = np.random.default_rng(0).standard_normal(500)
    masked = np.append(values, [-np.inf, np.inf])
    ranges = [observer_for(method, Histogram.of(each)).range(8, False) for each in (values, masked)]
    assert ranges[0] == ranges[1]


def test_one_outlier_on_one_side_does_not_trap_the_search():
    # 17.4 dB is what the best range found by hand, [-2.5, 2.6], gives.
    values = np.append(np.random.default_rng(0).standard_normal(200_000), [40.0, -5.0])
    histogram = Histogram.of(values)
    error = error_of(histogram, LeastError(histogram), 4, False)
    assert 10 * np.log10(np.mean(values**2) / error) > 17.2


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
        UsageError,
        match=r"'entropy' is unknown; choose one of \['aciq', 'cosine', 'fisher', 'kl', 'lp', 'minmax', ",
    ):
        observer_for("entropy", Histogram.empty())
