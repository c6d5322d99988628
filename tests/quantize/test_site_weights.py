import numpy as np
import pytest

from tests.quantize.test_moments import CASES, site
from tvmq.quantize.site_weights import kept_apart, limits_of, matrix_of, shaped


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_matrix_goes_back_into_the_weights_shape(kind):
    node, _, _, weight = site(kind)
    matrix = matrix_of(node)
    assert matrix.shape[1] == (weight.shape[1] if kind == "linear" else weight.shape[0])
    whole = np.arange(matrix.size, dtype=np.int64).reshape(matrix.shape).astype(np.int8)
    back = shaped(node, whole)
    assert back.shape == tuple(weight.shape)
    column = back[:, 1] if kind == "linear" else back[1].ravel()
    np.testing.assert_array_equal(column, whole[:, 1])


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_bits_take_all_their_values_and_no_two_neighbours_the_least(kind, bits):
    node, _, _, weight = site(kind)
    low, high = limits_of(node, bits)
    assert high == 2 ** (bits - 1) - 1
    inputs = {"linear": 0, "pointwise": 1, "strided": 1}.get(kind)
    assert low == (-high - 1 if bits < 8 and inputs is not None else -high)
    least = np.full(tuple(weight.shape), low, np.int8)
    apart = kept_apart(node, least, bits)
    assert (apart >= least).all()
    assert (apart - least <= 1).all()
    if low == -high:
        np.testing.assert_array_equal(apart, least)
        return
    along = np.moveaxis(apart.astype(int), inputs, 0)
    assert (along[0:-1:2] + along[1::2] == 2 * low + 1).all()
