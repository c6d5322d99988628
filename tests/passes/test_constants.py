import numpy as np
import pytest
from tvm import relax

from tvmq.passes.constants import array_of, channel_vector, constant, scalar_of


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8", "bool"])
def test_dtype_and_shape_survive_the_way_there_and_back(dtype):
    for array in (np.ones((), dtype), np.ones((2, 3), dtype).T):
        again = array_of(constant(array))
        assert (again.dtype, again.shape) == (array.dtype, array.shape)


def test_a_scalar_is_one_floating_number_of_any_rank():
    assert scalar_of(constant(np.full((1, 1), 0.5, np.float32))) == 0.5
    assert scalar_of(constant(np.ones(2, np.float32))) is None
    assert scalar_of(constant(np.ones((), np.int64))) is None
    assert scalar_of(relax.Var("x", relax.TensorType((), "float32"))) is None


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((4,), False), ((4, 1, 1), True), ((1, 4, 1, 1), True), ((), True), ((1, 4, 2, 1), False)],
)
def test_a_channel_vector_varies_along_its_axis_alone(shape, fits):
    vector = channel_vector(constant(np.ones(shape, np.float32)), 4, 1, 4)
    assert (vector is not None) == fits
    assert not fits or vector.shape == (4,)
