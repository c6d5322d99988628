"""Compensation against the normal equations, and the choice among scales."""

import torch
from hypothesis import given, settings

from tests.strategies import seeds
from tvmq.quantize.moments import Moments
from tvmq.quantize.rounding import damped, output_error
from tvmq.quantize.solve import RIDGE, compensated, solve


def moments_of(x, q):
    """Return the moments of float rows x and quantized rows q, [G, R, K]."""
    rows = x.shape[1]
    turned = q.transpose(1, 2)
    return Moments(turned @ q / rows, turned @ x / rows, q.mean(1), x.mean(1), rows)


def case(seed, noise=0.3):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 300, 5, generator=random) @ torch.randn(2, 5, 5, generator=random)
    q = x + noise * torch.randn(x.shape, generator=random)
    return x, q, torch.randn(2, 5, 4, generator=random)


@settings(deadline=None)
@given(seeds)
def test_compensation_is_the_ridge_regression_of_the_float_outputs(seed):
    x, q, weight = case(seed)
    found = compensated(weight, moments_of(x, q))
    for g in range(2):
        ridge = RIDGE * (q[g].T @ q[g] / 300).diagonal().mean()
        # Rows that ask for no change of the weights, sqrt(ridge) strong, below those that ask for the outputs.
        stacked = torch.cat([q[g], (300 * ridge).sqrt() * torch.eye(5)])
        wanted = torch.cat([(x[g] - q[g]) @ weight[g], torch.zeros(5, 4)])
        change = torch.linalg.lstsq(stacked.double(), wanted.double()).solution
        torch.testing.assert_close((found - weight)[g].double(), change, rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(seeds)
def test_nothing_is_compensated_where_inputs_are_exact(seed):
    x, _, weight = case(seed)
    torch.testing.assert_close(compensated(weight, moments_of(x, x)), weight, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(seeds)
def test_outputs_come_nearer_to_the_float_ones_than_by_rounding(seed):
    x, q, weight = case(seed)
    moments = moments_of(x, q)
    top = weight.abs().amax(1) / 7
    solved = solve(weight, moments, [top, top / 2], 7)
    plain = torch.floor(weight / top[:, None] + 0.5).clamp(-7, 7) * top[:, None]
    errors = [((x @ weight - q @ w) ** 2).sum() for w in (solved.weight, plain)]
    assert errors[0] < errors[1]


@settings(deadline=None)
@given(seeds)
def test_each_column_takes_its_best_scale(seed):
    x, q, weight = case(seed, noise=0.0)
    moments = moments_of(x, q)
    top = weight.abs().amax(1) / 7
    metric = damped(moments.gram, moments.rows)
    alone = [solve(weight, moments, [scale], 7) for scale in (top, top / 4)]
    both = solve(weight, moments, [top, top / 4], 7)
    errors = [output_error(weight, each.scale, metric, each.values) for each in (*alone, both)]
    torch.testing.assert_close(errors[2], torch.minimum(errors[0], errors[1]))
