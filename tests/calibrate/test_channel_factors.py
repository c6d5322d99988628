import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from tvmq.calibrate.channel_factors import CREST, NoiseModel, proposals


def model(seed, norm, outputs=5):
    rng = np.random.default_rng(seed)
    return NoiseModel(
        size=rng.normal(size=4),
        norm=norm,
        weight=np.exp(rng.normal(size=4)),
        largest=torch.from_numpy(rng.uniform(0, 1, (4, outputs))),
        scale=0.7,
        variance=np.exp(rng.normal(size=4)),
        steps=(0.01, 0.02),
    )


@pytest.mark.parametrize("outputs", [0, 5])
@pytest.mark.parametrize("norm", CREST)
def test_the_gradient_is_that_of_the_error_and_the_error_is_convex(norm, outputs):
    rng = np.random.default_rng(1)
    for seed in range(5):
        noise = model(seed, norm, outputs)
        a, b = rng.normal(size=(2, 4))
        slope = approx_fprime(a, lambda logs, noise=noise: noise(logs)[0], 1e-7)
        np.testing.assert_allclose(noise(a)[1], slope, atol=1e-5)
        assert noise((a + b) / 2)[0] <= (noise(a)[0] + noise(b)[0]) / 2 + 1e-12


def test_the_least_is_the_known_one_where_only_one_side_counts():
    """No noise of weights, |W_c| alike: m**(p + 2) ~ size**p. None of activations: m**14 ~ |W_c|**-12."""
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 2.0, 4.0, 8.0])
    rows, weight = rng.standard_normal((4000, 4)) * sizes, np.sign(rng.standard_normal((4, 1, 64)))
    for norm, m in zip(CREST, proposals(rows, [weight], np.zeros(4), (1.0, 1e-9)), strict=True):
        np.testing.assert_allclose(m / m[0], sizes ** (norm / (norm + 2)), rtol=0.2)
    rows, weight = np.sign(rng.standard_normal((4000, 4))), weight / sizes[:, None, None]
    for m in proposals(rows, [weight], np.zeros(4), (1e-9, 1.0)):
        np.testing.assert_allclose(m / m[0], sizes ** (12 / 14), rtol=0.1)


def test_rows_of_zeros_propose_nothing():
    assert proposals(np.zeros((5, 2)), [np.ones((2, 1, 3))], np.zeros(2), (1.0, 1.0)) == []
