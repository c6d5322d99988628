"""Choose which few codes a value is stored in, where a table makes it: they need not be equidistant.

A value of b bits has 2**b codes. A table may write any of its 256, so that the codes go where the values are:
what GELU makes crowds below zero and reaches far above. Least squares by dynamic programming over a histogram
(Bruce 1965; Wu 1991) finds the best levels of all, where Lloyd's iterations find some.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tvmq.calibrate.grids import SMALLEST_SCALE
from tvmq.formats import QuantParams
from tvmq.numerics import INTEGER_RANGE

Floats = npt.NDArray[np.float64]

BINS = 512
LARGEST = INTEGER_RANGE["uint8"][1]


def coded(rows: torch.Tensor, energy: torch.Tensor, bits: int) -> QuantParams:
    """Return the storage of rows [R, C] in 2**bits codes of uint8; energy [C]: what a channel's error counts.

    Zero is a number of its grid, though perhaps none of the codes. Where no error counts, all count alike.
    """
    energy = energy if bool((energy > 0).any()) else torch.ones_like(energy)
    levels = best_levels(*_histogram(rows, energy), 2**bits)
    low, high = min(float(levels[0]), 0.0), max(float(levels[-1]), 0.0)
    scale = max(float(np.float32((high - low) / LARGEST)), SMALLEST_SCALE) if high > low else 1.0
    zero = int(np.floor(0.5 - low / scale))
    places = np.clip(np.floor(levels / scale + 0.5) + zero, 0, LARGEST)
    codes = tuple(sorted({int(place) for place in places}))
    return QuantParams(scale, zero, "uint8", (codes[0], codes[-1]), codes)


def best_levels(points: Floats, weights: Floats, count: int) -> Floats:
    """Return at most count levels, ascending, of least weighted squared distance to ascending points [N].

    weights: positive. A level is the mean of a stretch of the points; the least error of k stretches of the
    first j points is that of k - 1 of the first i and one of the rest, for the best i.
    """
    sums = [
        np.concatenate([[0.0], np.cumsum(each)]) for each in (weights, weights * points, weights * points**2)
    ]
    weight, first, second = (each[None, :] - each[:, None] for each in sums)  # [i, j]: of the points i..j - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.maximum(second - first**2 / weight, 0.0)
    ends = np.arange(len(points) + 1)
    alone = np.where(ends[:, None] < ends[None, :], alone, np.inf)
    error, begins = alone[0], [np.zeros(len(ends), np.int64)]
    for _ in range(min(count, len(points)) - 1):
        total = error[:, None] + alone
        begins.append(total.argmin(0))
        error = total[begins[-1], ends]
    levels, end = [], len(points)
    for begin in reversed(begins):
        start = int(begin[end])
        levels.append(first[start, end] / weight[start, end])
        end = start
    return np.array(levels[::-1])


def _histogram(rows: torch.Tensor, energy: torch.Tensor) -> tuple[Floats, Floats]:
    """Return the means of the bins that hold anything, and what they count."""
    values = rows.double()
    low, high = values.min(), values.max()
    place = ((values - low) * (BINS / (high - low).clamp_min(1e-30))).long().clamp_(0, BINS - 1).ravel()
    counts = energy.double().expand_as(values).ravel()
    weights = torch.bincount(place, counts, BINS)
    means = torch.bincount(place, counts * values.ravel(), BINS) / weights
    held = weights > 0
    return means[held].numpy(), weights[held].numpy()
