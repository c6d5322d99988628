import numpy as np
import pytest

from tests.quantize.test_moments import CASES, site
from tvmq.quantize.site_weights import matrix_of, shaped


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
