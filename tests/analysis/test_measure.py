"""What is measured is what NumPy computes from the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.analysis.nets import WIDTH, samples, site, small, two
from tvmq.analysis.measure import Clipping, Sums
from tvmq.analysis.records import BEST_DB
from tvmq.quantizer import quantized


def decibel(wanted: np.ndarray, given: np.ndarray) -> float:
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - given).sum())


def test_numbers_are_those_of_numpy():
    numbers = quantized(two(), (torch.zeros(1, 20, WIDTH),), samples()).numbers
    x = np.concatenate(samples()).astype(np.float64)

    def stored(name: str, values: np.ndarray) -> np.ndarray:
        params = numbers.values[name]
        low, high = {"uint8": (0, 255), "int16": (-32768, 32767)}[params.dtype]
        codes = np.clip(np.rint(values / params.scale) + params.zero_point, low, high)
        return params.scale * (codes - params.zero_point)

    def weight(name: str) -> np.ndarray:
        return numbers.weights[name].values * numbers.weights[name].scale.astype(np.float64)

    w1 = two().first.weight.detach().numpy().T.astype(np.float64)
    w2 = two().second.weight.detach().numpy().T.astype(np.float64)
    b1 = two().first.bias.detach().numpy().astype(np.float64)
    (bias,) = numbers.biases.values()
    hidden = np.maximum(x @ w1 + b1, 0)
    (between,) = set(numbers.values) - {"x"}
    found = stored(between, np.maximum(stored("x", x) @ weight("first") + bias, 0))
    first, second = site(small(), "first"), site(small(), "second")
    assert first.together.sqnr_db == pytest.approx(decibel(hidden, found), abs=0.02)
    assert first.alone == first.together  # nothing comes before it
    assert first.weights_db == pytest.approx(
        decibel(hidden, np.maximum(x @ weight("first") + bias, 0)), abs=0.02
    )
    assert first.inputs_db == pytest.approx(
        decibel(hidden, np.maximum(stored("x", x) @ w1 + b1, 0)), abs=0.02
    )
    y = hidden @ w2
    assert second.together.sqnr_db == pytest.approx(decibel(y, found @ weight("second")), abs=0.02)
    alone = stored(between, hidden) @ weight("second")
    assert second.alone is not None
    assert second.alone.sqnr_db == pytest.approx(decibel(y, alone), abs=0.02)
    cosine = (y * alone).sum() / np.sqrt(np.square(y).sum() * np.square(alone).sum())
    assert second.alone.cosine == pytest.approx(cosine, abs=1e-6)
    assert small().outputs[0].closeness == second.together
    np.testing.assert_allclose(first.channels_after, np.abs(x).max((0, 1)), rtol=1e-3)


def test_equal_values_and_dead_ones_have_finite_decibels():
    equal, dead = Sums(), Sums()
    equal.add(torch.ones(3), torch.ones(3))
    dead.add(torch.tensor([0.0, float("-inf")]), torch.tensor([1.0, 0.0]))
    assert (equal.closeness().sqnr_db, equal.closeness().cosine) == (BEST_DB, 1.0)
    assert (dead.closeness().sqnr_db, dead.closeness().cosine) == (-BEST_DB, 0.0)


def test_clipping_counts_what_codes_cannot_hold():
    clipping = Clipping()
    clipping.add(torch.tensor([0.0, 1.0, 1.04, 3.0]), -1.0, 1.0, 0.1)
    outside, by_clipping = clipping.shares
    assert outside == 0.25
    assert by_clipping == pytest.approx(4 / (4 + 3 * 0.01 / 12))
