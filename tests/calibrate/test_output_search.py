import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.calibrate.grids import fake_quantized
from tvmq.calibrate.metrics import METRICS, Ranking, attention_maps
from tvmq.calibrate.output_search import (
    OutputBatch,
    OutputErrors,
    alternate,
    best_scale,
    linear_output,
    scale_factors,
)

FACTORS = scale_factors(0.5, 1.2, 15)


def linear(seed, rows=48, inputs=3, outputs=2):
    """Return (batches, weight, start scales, Approximate) of a tiny linear layer with outliers, 4 bits."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=rng, dtype=torch.float64) ** 3
    weight = torch.randn(inputs, outputs, generator=rng, dtype=torch.float64)
    gradient = torch.rand(rows, outputs, generator=rng, dtype=torch.float64)
    batches = [
        OutputBatch((x[i : i + 16],), x[i : i + 16] @ weight, gradient[i : i + 16])
        for i in range(0, rows, 16)
    ]
    start = [np.array(float(x.abs().max()) / 7), weight.abs().amax(0).numpy() / 7]
    approximate = linear_output(weight, bits=4, weight_bits=4, zero_point=0, symmetric=True)
    return batches, weight, start, approximate


def whole_error(metric, batches, output):
    """Return the metric of all rows at once."""
    exact = torch.cat([b.exact for b in batches])
    gradient = torch.cat([b.gradient for b in batches]) if batches[0].gradient is not None else None
    approximate = torch.cat([output(b.inputs) for b in batches])
    return float(metric.error(metric.sums(exact, approximate, gradient).sum(-1).numpy()))


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from(sorted(METRICS)))
def test_best_scale_of_activations_is_that_of_brute_force(seed, name):
    batches, _, start, approximate = linear(seed)
    metric = METRICS[name]()
    errors = [
        whole_error(metric, batches, lambda x, f=f: approximate(x, [start[0] * f, start[1]])) for f in FACTORS
    ]
    scale, error, first = best_scale(metric, batches, start, approximate, factors=FACTORS)
    assert first == pytest.approx(errors[0], rel=1e-9)
    assert error == pytest.approx(min(errors), rel=1e-9, abs=1e-15)
    assert errors[list(FACTORS * start[0]).index(float(scale))] == pytest.approx(
        min(errors), rel=1e-9, abs=1e-15
    )


@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from(["mse", "fisher"]))
def test_weight_scales_by_column_are_those_of_all_combinations(seed, name):
    batches, _, start, approximate = linear(seed)
    metric = METRICS[name]()
    errors = {
        pair: whole_error(metric, batches, lambda x, p=pair: approximate(x, [start[0], start[1] * p]))
        for pair in itertools.product(FACTORS, FACTORS)
    }
    scale, error, _ = best_scale(metric, batches, start, approximate, index=1, factors=FACTORS)
    assert error == pytest.approx(min(errors.values()), rel=1e-9)
    assert whole_error(metric, batches, lambda x: approximate(x, [start[0], scale])) == pytest.approx(error)


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from(sorted(METRICS)))
def test_alternating_is_never_worse_than_its_start_and_says_its_error(seed, name):
    batches, _, start, approximate = linear(seed)
    metric = METRICS[name]()
    before = whole_error(metric, batches, lambda x: approximate(x, start))
    scales, error = alternate(metric, batches, start, approximate, factors=FACTORS)
    assert error <= before * (1 + 1e-9)
    after = whole_error(metric, batches, lambda x: approximate(x, scales))
    assert after == pytest.approx(error, rel=1e-9, abs=1e-15)
    once, first = best_scale(metric, batches, start, approximate, factors=FACTORS)[:2]
    assert error <= first * (1 + 1e-9), once


def test_scales_of_queries_and_keys_by_the_ranking_of_scores():
    rng = torch.Generator().manual_seed(5)
    q, k = (torch.randn(3, 7, 4, generator=rng, dtype=torch.float64) ** 3 for _ in range(2))
    batches = [OutputBatch((q[i], k[i]), attention_maps(q[i], k[i], 0.5)) for i in range(3)]
    start = [np.array(float(v.abs().max()) / 7) for v in (q, k)]

    def maps(inputs, scales):
        return attention_maps(
            *(fake_quantized(v, float(s), 0, 4, True) for v, s in zip(inputs, scales, strict=True)), 0.5
        )

    metric = Ranking()
    scales, error = alternate(metric, batches, start, maps, factors=FACTORS)
    # Every pair of factors: the alternation may end beside the best of them, but not far from it.
    errors = [
        whole_error(
            metric, batches, lambda x, p=pair: maps(x, [s * f for s, f in zip(start, p, strict=True)])
        )
        for pair in itertools.product(FACTORS, FACTORS)
    ]
    assert errors[0] > 1.2 * error
    assert error <= np.quantile(errors, 0.05)
    assert whole_error(metric, batches, lambda x: maps(x, scales)) == pytest.approx(error)


def test_batches_are_looked_at_one_at_a_time_once_per_search():
    batches, _, start, approximate = linear(0)
    alive = []

    def stream():
        for batch in batches:
            alive.append(batch)
            yield batch
            alive.pop()
            assert not alive

    found = best_scale(METRICS["mse"](), stream(), start, approximate, factors=FACTORS)
    expected = best_scale(METRICS["mse"](), batches, start, approximate, factors=FACTORS)
    assert found[0] == expected[0]


@pytest.mark.parametrize("name", METRICS)
def test_memory_of_errors_does_not_grow_with_rows(name):
    errors = OutputErrors(METRICS[name](), 1)
    sizes = []
    for rows in (2, 2000, 2000):
        values = torch.rand(rows, 3, dtype=torch.float64)
        errors.add(0, values, values + 0.1, values)
        sizes.append(errors._totals[0].numel())
    assert sizes[0] == sizes[1] == sizes[2] <= 9


def test_candidates_start_with_the_present_scale_and_ties_keep_it():
    factors = scale_factors(0.5, 2, 4)
    assert factors.tolist() == [1, 0.5, 1, 1.5, 2]
    zeros = OutputBatch((torch.zeros(2, 3, dtype=torch.float64),), torch.zeros(2, 2, dtype=torch.float64))
    _, _, start, approximate = linear(0)
    scale, error, _ = best_scale(METRICS["mse"](), [zeros], start, approximate, factors=factors)
    assert (float(scale), error) == (float(start[0]), 0.0)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="a candidate was given no rows"):
        OutputErrors(METRICS["mse"](), 2).errors()
