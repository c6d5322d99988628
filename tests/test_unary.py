"""The float64 functions behind the tables are torch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tvmq.unary import UNARY_FUNCTIONS

TORCH = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "relu6": F.relu6,
}


@pytest.mark.parametrize("name", UNARY_FUNCTIONS)
def test_a_function_is_torchs_by_its_relax_name(name):
    x = np.concatenate([np.linspace(-12, 12, 401), [-1e3, 1e3]])
    np.testing.assert_allclose(
        UNARY_FUNCTIONS[name](x), TORCH[name](torch.from_numpy(x)).numpy(), rtol=1e-12, atol=1e-15
    )
