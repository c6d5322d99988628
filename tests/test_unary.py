"""The float64 functions behind the tables are torch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tvmq.reference_ops import OPERATORS
from tvmq.unary import ELEMENTWISE, UNARY_FUNCTIONS, grows_no_faster

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


def test_what_chains_are_made_of_has_a_torch_form():
    assert set(ELEMENTWISE) <= {name.rsplit(".", 1)[-1] for name in OPERATORS}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        *((function, True) for function in UNARY_FUNCTIONS.values()),
        (lambda x: x * np.clip(x + 3, 0, 6) / 6, True),
        (lambda x: np.log1p(np.exp(x)), True),
        (lambda x: 0.5 * x - 7, True),
        (lambda x: x * x, False),
        (lambda x: np.maximum(x, 1e-6) ** 3, False),
        (np.exp, False),
        (lambda x: np.maximum(np.exp(-x), 1), False),
        (lambda x: 1 / np.maximum(x, 0), False),  # infinite at 0
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_activations_grow_no_faster_than_their_argument(function, expected):
    assert grows_no_faster(function) is expected
