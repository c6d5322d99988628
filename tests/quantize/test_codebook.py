"""The best levels are those that no other choice beats, and codes hold them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from tvmq.formats import QuantParams
from tvmq.quantize.codebook import best_levels, coded
from tvmq.quantize.lockstep import rounded
from tvmq.quantize.step_candidates import narrowed


def error(points, weights, levels):
    return float((weights * np.abs(points[:, None] - levels).min(1) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_no_cut_of_the_points_leaves_less_error(seed):
    rng = np.random.default_rng(seed)
    points, weights = np.sort(rng.normal(size=9)), rng.uniform(0.1, 2, 9)
    found = best_levels(points, weights, 3)
    cuts = [np.split(np.arange(9), list(ends)) for ends in combinations(range(1, 9), 2)]
    means = [np.array([np.average(points[c], weights=weights[c]) for c in cut]) for cut in cuts]
    assert error(points, weights, found) == pytest.approx(min(error(points, weights, m) for m in means))


def test_few_points_have_a_level_each():
    points = np.array([-1.0, 2.0])
    assert best_levels(points, np.ones(2), 16).tolist() == points.tolist()


def activations():
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 0.7, 8)
    return torch.nn.functional.gelu(x), torch.linspace(2, 0.1, 8)


@pytest.mark.parametrize("bits", [3, 4])
def test_codes_are_as_many_as_the_bits_hold_and_beat_equal_steps(bits):
    rows, energy = activations()
    params = coded(rows, energy, bits)
    stored = rounded(rows, params)
    assert len(params.codes) <= 2**bits
    assert len(stored.unique()) <= 2**bits
    own = QuantParams(0.1, 1, "uint8", (0, 2**bits - 1))
    equal = narrowed(float(rows.min()), float(rows.max()), own, bits)
    errors = [float(((rounded(rows, p) - rows).square() * energy).sum()) for p in (params, *equal)]
    assert errors[0] < 0.6 * min(errors[1:])


@pytest.mark.parametrize("value", [0.7, 0.0, -0.2])
def test_values_that_are_all_alike_have_a_code(value):
    rows = torch.full((3, 2), value)
    found = rounded(rows, coded(rows, torch.ones(2), 4))
    assert found.unique().tolist() == pytest.approx([value])


@pytest.mark.parametrize("size", [1.0, 1e-44])
def test_values_have_codes_though_no_error_counts_and_however_small_they_are(size):
    """A reader of zeros, as last layers begin, took levels that were no numbers."""
    rows, energy = activations()
    params = coded(rows * size, torch.zeros_like(energy), 4)
    assert 0 < len(params.codes) <= 16
    assert params.scale > 0
