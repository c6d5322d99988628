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
