"""Rounding against brute force, and the promise that no step makes the error larger."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.quantize.rounding import BLOCK, damped, descended, factored, output_error, rounded_with_feedback


def case(seed, groups, inputs, outputs, rank=None):
    """Return weight, scale and the damped covariance of inputs that vary in `rank` directions, nearly."""
    random = torch.Generator().manual_seed(seed)
    rank = rank or inputs
    x = torch.randn(groups, 400, rank, generator=random) @ torch.randn(groups, rank, inputs, generator=random)
    x += 0.05 * torch.randn(x.shape, generator=random)
    weight = torch.randn(groups, inputs, outputs, generator=random)
    return weight, weight.abs().amax(1) / 7, damped(x.transpose(1, 2) @ x / 400, 400)


def nearest(weight, scale, largest):
    return torch.floor(weight / scale[:, None] + 0.5).clamp(-largest, largest)


@settings(deadline=None)
@given(seeds)
def test_descent_is_never_worse_and_stays_in_range(seed):
    weight, scale, metric = case(seed, groups=2, inputs=9, outputs=4)
    scale = scale * 0.6  # the largest weights are clipped
    start = nearest(weight, scale, 7)
    found = descended(weight, scale, metric, start, (-7, 7))
    before, after = (output_error(weight, scale, metric, values) for values in (start, found))
    assert (after <= before * 1.0001 + 1e-6).all()
    assert found.abs().max() <= 7
    assert torch.equal(found, found.round())


def test_close_to_the_best_of_all_whole_numbers():
    weight, scale, metric = case(0, groups=1, inputs=3, outputs=40)
    values = descended(weight, scale, metric, rounded_with_feedback(weight, scale, metric, (-7, 7)), (-7, 7))
    found = output_error(weight, scale, metric, values)[0]
    every = torch.tensor(list(itertools.product(range(-7, 8), repeat=3)), dtype=torch.float32).T[None]
    best = torch.stack(
        [
            output_error(
                weight[:, :, n, None], scale[:, n, None].expand(1, every.shape[2]), metric, every
            ).min()
            for n in range(40)
        ]
    )
    assert (found >= best * 0.999 - 1e-6).all()
    assert found.sum() <= 1.5 * best.sum()
    assert (found <= best * 1.001 + 1e-6).sum() >= 28


def test_correlated_inputs_leave_a_fraction_of_the_error():
    inputs = BLOCK + 20  # errors pass from block to block
    weight, scale, metric = case(0, groups=1, inputs=inputs, outputs=6, rank=inputs // 4)
    fed = rounded_with_feedback(weight, scale, metric, (-7, 7))
    before = output_error(weight, scale, metric, nearest(weight, scale, 7)).sum()
    after = output_error(weight, scale, metric, fed).sum()
    last = output_error(weight, scale, metric, descended(weight, scale, metric, fed, (-7, 7))).sum()
    assert after < 0.3 * before
    assert last <= after


@settings(deadline=None)
@given(seeds, st.integers(1, 3))
def test_equals_the_published_recursion(seed, groups):
    """GPTQ's definition: after each row, the inverse loses it by one step of Gaussian elimination."""
    weight, scale, metric = case(seed, groups=groups, inputs=7, outputs=1)
    found = rounded_with_feedback(weight, scale, metric, (-7, 7))
    for g in range(groups):
        inverse, left = torch.linalg.inv(metric[g].double()), weight[g, :, 0].double()
        for i in torch.argsort(-metric[g].diagonal(), stable=True):
            step = float(scale[g, 0])
            value = torch.floor(left[i] / step + 0.5).clamp(-7, 7)
            assert abs(float(value) - float(found[g, i, 0])) <= (
                1.0 if abs((float(left[i]) / step + 0.5) % 1) < 1e-3 else 0.0
            )
            left = left - (left[i] - value * step) / inverse[i, i] * inverse[i]
            inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]


def test_channels_that_never_vary_are_rounded_too():
    """A dead input, all dead, and a covariance that float32 sums left slightly negative."""
    metric = torch.diag_embed(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [1e-7, -1e-8, 1e-7]]))
    weight, scale = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)), torch.full((3, 4), 0.1)
    raised = damped(metric, 100)
    values = rounded_with_feedback(weight, scale, raised, (-127, 127))
    assert torch.isfinite(values).all()
    torch.testing.assert_close(values[0, 1], torch.floor(weight[0, 1] / 0.1 + 0.5))
    factor = factored(metric)
    assert torch.isfinite(factor).all()
    torch.testing.assert_close((factor @ factor.transpose(1, 2))[0], metric[0].double(), rtol=0, atol=1e-4)
