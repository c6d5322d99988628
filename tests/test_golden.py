import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq import golden
from tvmq.spec import TensorSpec


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_a_sample_is_near(values):
    x = np.array(values, np.float32)
    sample = golden.sample_of(x)
    near = sample.value()
    assert near.dtype == np.float32
    # The step is a power of two, at most twice a 254th of the range.
    assert np.abs(near - x).max() <= (max(0, *values, 0) - min(0, *values, 0)) / 127 + 1e-30


def test_dequantisation_is_exact():
    # Both the sum and the product are exact in float32: no rounding that could differ between machines.
    sample = golden.Sample(np.arange(256, dtype=np.uint8), "float32", exponent=-6, offset=-128)
    np.testing.assert_array_equal(sample.value(), (np.arange(256) - 128) / 64)


def test_integers_are_kept():
    ids = np.array([[1, 30522, 7]])
    np.testing.assert_array_equal(golden.sample_of(ids).value(), ids)


def test_random_arrays_keep_range_and_kind_but_no_value_of_the_original():
    photo = np.random.default_rng(7).uniform(-2, 3, (2, 3, 8, 8)).astype(np.float32)
    ids = np.arange(1000, 1100)[None]
    masks = np.ones((1, 8), np.int64), np.array([[True, False] * 8]), np.array(3.5, np.float16)
    likes = golden.random_like([photo, ids, *masks])
    assert [(a.shape, a.dtype) for a in likes] == [(a.shape, a.dtype) for a in (photo, ids, *masks)]
    noise, numbers, ones, flags, scalar = likes
    assert photo.min() <= noise.min() < -1.8
    assert 2.8 < noise.max() <= photo.max()
    assert abs(np.corrcoef(noise.ravel(), photo.ravel())[0, 1]) < 0.2
    assert set(numbers.ravel()) <= set(ids.ravel())
    assert (numbers != ids).mean() > 0.8
    assert ones.all()
    assert set(flags.ravel()) == {True, False}
    assert scalar == 3.5
    for a, b in zip(likes, golden.random_like([photo, ids, *masks]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_arrays_of_extremes():
    whole = np.array([-(2**63), 2**63 - 1])
    (huge, full, empty) = golden.random_like(
        [np.array([-3e38, 3e38], np.float32), whole, np.empty((0, 3), np.float32)]
    )
    assert np.isfinite(huge).all()
    assert full.dtype == np.int64
    assert empty.shape == (0, 3)


def test_default_samples_fit_the_inputs():
    specs = (TensorSpec("image", (1, 3, 4, 4), "float32"), TensorSpec("mask", (1, 8), "int64"))
    image, mask = (sample.value() for sample in golden.default_samples(specs))
    assert (image.shape, image.dtype) == ((1, 3, 4, 4), np.float32)
    assert image.std() > 0.5
    assert mask.dtype == np.int64
    assert mask.all()


@pytest.mark.parametrize(
    "other",
    [np.zeros((2, 3), np.int8), np.zeros((3, 2), np.uint8), np.array([[0, 0, 0], [0, 0, 1]], np.uint8)],
)
def test_a_checksum_covers_dtype_shape_and_values(other):
    zeros = np.zeros((2, 3), np.uint8)
    assert golden.checksum(zeros) == golden.checksum(np.asfortranarray(zeros))
    assert golden.checksum(zeros) != golden.checksum(other)
