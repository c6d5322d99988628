"""Clipping in closed form: Banner et al., Post training 4-bit quantization, NeurIPS 2019, section 3 (ACIQ).

A value of spread s about its mean is clipped to [mean - t s, mean + t s], cut into equal steps. In units of
s**2, the error is that of clipping, which falls with t, plus t**2 / (3 steps**2) of rounding; the t where the
slopes cancel depends on the distribution's shape and on steps alone. The paper's table has 2**bits steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

from tvmq.calibrate.grids import FloatArray
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.range_errors import without_spike

LARGEST_FACTOR = 40.0  # beyond, a density is below 1e-17: no number of steps asks for it


@dataclass(frozen=True, slots=True)
class Spread:
    """What a closed form asks about a value: a mean, E|x - mean| and sqrt(E[(x - mean)**2])."""

    mean: float
    deviation: float
    sigma: float


def spread_of(histogram: Histogram) -> Spread:
    """Return the spread of a non-empty histogram, values being uniform within each bin.

    It is computed from the counts, so the order in which data came changes no bit of it.
    """
    edges, counts = histogram.occupied()
    mean = float((edges[:-1] + edges[1:]) / 2 @ counts / counts.sum())
    return _spread(edges, counts / counts.sum(), mean)


def spread_about_zero(histogram: Histogram) -> Spread:
    """Return the spread with zero for its mean, as if values on one side of zero were half a distribution.

    Zeros that a ReLU makes are no part of it; they cost a grid nothing.
    """
    edges, counts = histogram.occupied()
    kept = without_spike(counts, edges)
    if not kept.any():
        kept = counts.astype(np.float64)
    return _spread(edges, kept / kept.sum(), 0.0)


def _spread(edges: FloatArray, weights: FloatArray, mean: float) -> Spread:
    distance = np.abs((edges[:-1] + edges[1:]) / 2 - mean)
    half = (edges[1] - edges[0]) / 2
    # Within the mean's own bin, on either side: (half + distance)**2 / 2 and (half - distance)**2 / 2.
    deviation = np.where(distance < half, (half**2 + distance**2) / (2 * half), distance)
    variance = float(weights @ distance**2) + half**2 / 3
    return Spread(mean, float(weights @ deviation), math.sqrt(variance))


def laplace_error(t: float, steps: int) -> float:
    """Return the mean squared error for the Laplace density exp(-|x|) / 2, whose deviation is 1."""
    return 2 * math.exp(-t) + t**2 / (3 * steps**2)


def gauss_error(t: float, steps: int) -> float:
    """Return the mean squared error for the normal density of sigma 1."""
    clipped = (1 + t**2) * math.erfc(t / math.sqrt(2)) - math.sqrt(2 / math.pi) * t * math.exp(-(t**2) / 2)
    return clipped + t**2 / (3 * steps**2)


@lru_cache
def laplace_factor(steps: int) -> float:
    """Return the t of least laplace_error."""
    return _root(lambda t: -math.exp(-t) + t / (3 * steps**2))


@lru_cache
def gauss_factor(steps: int) -> float:
    """Return the t of least gauss_error."""
    return _root(
        lambda t: (
            t * math.erfc(t / math.sqrt(2))
            - math.sqrt(2 / math.pi) * math.exp(-(t**2) / 2)
            + t / (3 * steps**2)
        )
    )


def clipped_range(
    mean: float, reach: Callable[[int], float], minimum: float, maximum: float, *, steps: int, symmetric: bool
) -> tuple[float, float]:
    """Return the range, within the values seen, of a grid of so many steps; reach(steps): t times the spread.

    Values on one side of zero are one half of a distribution, and its other half would take as many steps
    again. A symmetric grid spends them on both sides anyway.
    """
    if symmetric:
        high = min(abs(mean) + reach(steps), max(-minimum, maximum))
        return -high, high
    if minimum >= 0:
        return 0.0, min(max(mean, 0.0) + reach(2 * steps), maximum)
    if maximum <= 0:
        return max(min(mean, 0.0) - reach(2 * steps), minimum), 0.0
    return max(mean - reach(steps), minimum), min(mean + reach(steps), maximum)


def _root(slope: Callable[[float], float]) -> float:
    """Return where half the error's slope, negative at first, is zero."""
    return float(brentq(slope, 0.0, LARGEST_FACTOR, xtol=1e-12))
