"""Compensation against the normal equations, the ridge's choice, and the choice among scales."""

import torch
from hypothesis import given, settings

from tests.strategies import seeds
from tvmq.quantize.moments import Moments, pooled
from tvmq.quantize.rounding import damped, output_error
from tvmq.quantize.solve import RIDGES, best_ridge, compensated, solve


def moments_of(x, q):
    """Return the moments of float rows x and quantized rows q, [G, R, K]."""
    rows = x.shape[1]
    turned = q.transpose(1, 2)
    return Moments(turned @ q / rows, turned @ x / rows, q.mean(1), x.mean(1), rows)


def halves_of(x, q):
    return moments_of(x[:, ::2], q[:, ::2]), moments_of(x[:, 1::2], q[:, 1::2])


def case(seed, noise=0.3, rows=300, inputs=5):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(2, inputs, inputs, generator=random)
    x = torch.randn(2, rows, inputs, generator=random) @ mixed
    q = x + noise * torch.randn(x.shape, generator=random)
    return x, q, torch.randn(2, inputs, 4, generator=random)


@settings(deadline=None)
@given(seeds)
def test_compensation_is_the_ridge_regression_of_the_float_outputs(seed):
    x, q, weight = case(seed)
    found = compensated(weight, moments_of(x, q), 0.1)
    for g in range(2):
        ridge = 0.1 * (q[g].T @ q[g] / 300).diagonal().mean()
        # Rows that ask for no change of the weights, sqrt(ridge) strong, under those for the outputs.
        stacked = torch.cat([q[g], (300 * ridge).sqrt() * torch.eye(5)])
        wanted = torch.cat([(x[g] - q[g]) @ weight[g], torch.zeros(5, 4)])
        change = torch.linalg.lstsq(stacked.double(), wanted.double()).solution
        torch.testing.assert_close((found - weight)[g].double(), change, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seeds)
def test_nothing_is_compensated_where_inputs_are_exact(seed):
    x, _, weight = case(seed)
    torch.testing.assert_close(compensated(weight, moments_of(x, x), 0.3), weight, rtol=1e-3, atol=1e-4)


def test_the_ridge_grows_as_rows_become_few():
    plenty, few = case(0, noise=1.0, rows=4000, inputs=24), case(0, noise=0.2, rows=40, inputs=24)
    chosen = [best_ridge(weight, halves_of(x, q)) for x, q, weight in (plenty, few)]
    assert chosen[0] == min(RIDGES)
    assert chosen[1] is None or chosen[1] >= 10 * chosen[0]


def test_outputs_come_nearer_to_the_float_ones_than_by_rounding():
    errors = torch.zeros(2)
    for seed in range(20):
        x, q, weight = case(seed)
        top = weight.abs().amax(1) / 7
        solved = solve(weight, halves_of(x, q), [top, top / 2], (-7, 7))
        plain = torch.floor(weight / top[:, None] + 0.5).clamp(-7, 7) * top[:, None]
        errors += torch.stack([((x @ weight - q @ w) ** 2).sum() for w in (solved.weight, plain)])
    assert errors[0] < 0.85 * errors[1]


@settings(deadline=None)
@given(seeds)
def test_each_column_takes_its_best_scale(seed):
    x, q, weight = case(seed, noise=0.0)
    halves = halves_of(x, q)
    top = weight.abs().amax(1) / 7
    moments = pooled(*halves)
    metric = damped(moments.gram, moments.rows)
    alone = [solve(weight, halves, [scale], (-7, 7)) for scale in (top, top / 4)]
    both = solve(weight, halves, [top, top / 4], (-7, 7))
    errors = [output_error(each.wanted, each.scale, metric, each.values) for each in (*alone, both)]
    torch.testing.assert_close(errors[2], torch.minimum(errors[0], errors[1]))


def test_more_bits_leave_less_error():
    x, q, weight = case(3, noise=0.0, rows=2000, inputs=40)
    errors = []
    for largest in (1, 3, 7, 15, 31, 127):
        top = weight.abs().amax(1) / largest
        solved = solve(weight, halves_of(x, q), [top * f for f in (1.0, 0.8, 0.6)], (-largest, largest))
        errors.append(float(((x @ weight - q @ solved.weight) ** 2).sum()))
    assert errors == sorted(errors, reverse=True)
