"""A histogram of fixed memory whose content does not depend on the order in which data came.

Bins are [i * 2**e, (i + 1) * 2**e) for whole i. The exponent e is the smallest for which the data's own
minimum and maximum lie within BINS bins, so it is a function of the data alone, and going from e to e + 1
joins whole pairs of bins. Merging is therefore exact: associative, commutative, and equal to counting
everything at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BINS = 2048
INDEX_BITS = 24  # a bin index is below 2**24 in size, so float32 holds it exactly
MIN_EXPONENT = -126  # so that the inverse of the width is a finite float32

Array = torch.Tensor | npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts int64 [BINS] of the finite values of float tensors, with their exact minimum and maximum.

    total is the sum of the values, to float64 rounding; it alone depends on the order of merging.
    """

    counts: npt.NDArray[np.int64]
    minimum: float  # +inf when empty
    maximum: float  # -inf when empty
    total: float

    @classmethod
    def empty(cls) -> Histogram:
        """Return the histogram of no values, the neutral element of merge."""
        return cls(np.zeros(BINS, np.int64), math.inf, -math.inf, 0.0)

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """Count the values of a float tensor or array of any shape, as float32.

        Infinities (masks) are left out; NaN is a ValueError.
        """
        flat = torch.as_tensor(values).detach().reshape(-1).to(torch.float32)
        if flat.numel() == 0:
            return cls.empty()
        low, high = (bound.item() for bound in torch.aminmax(flat))
        if math.isnan(low):
            raise ValueError("NaN among the values of a histogram")
        if math.isinf(low) or math.isinf(high):
            return cls.of(flat[torch.isfinite(flat)])
        exponent, first = _geometry(low, high)
        counts = torch.bincount(_bin_indices(flat, exponent, first), minlength=BINS)
        total = flat.sum(dtype=torch.float64).item()
        return cls(counts.numpy(), low + 0.0, high + 0.0, total)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        low, high = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        if low > high:
            return self
        exponent, first = _geometry(low, high)
        counts = self._counts_at(exponent, first) + other._counts_at(exponent, first)
        return Histogram(counts, low, high, self.total + other.total)

    @property
    def count(self) -> int:
        """Return how many values were counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Return the width of a bin, a power of two."""
        return math.ldexp(1.0, _geometry(self.minimum, self.maximum)[0])

    def occupied(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return (edges [n + 1], counts [n]) from minimum's bin to maximum's, for a non-empty histogram."""
        exponent, first = _geometry(self.minimum, self.maximum)
        used = _bin_of(self.maximum, exponent) - first + 1
        return np.ldexp(np.arange(first, first + used + 1, dtype=np.float64), exponent), self.counts[:used]

    def quantile(self, fraction: float) -> float:
        """Return the value below which this fraction lies, linear within a bin, within [minimum, maximum]."""
        edges, counts = self.occupied()
        cumulative = np.concatenate([[0], np.cumsum(counts)])
        value = float(np.interp(fraction * cumulative[-1], cumulative, edges))
        return min(max(value, self.minimum), self.maximum)

    def _counts_at(self, exponent: int, first: int) -> npt.NDArray[np.int64]:
        """Return the counts in bins of width 2**exponent, no finer than the present ones, from bin first."""
        if self.minimum > self.maximum:
            return self.counts
        own_exponent, own_first = _geometry(self.minimum, self.maximum)
        if (own_exponent, own_first) == (exponent, first):
            return self.counts
        used = _bin_of(self.maximum, own_exponent) - own_first + 1
        index = (np.arange(own_first, own_first + used) >> (exponent - own_exponent)) - first
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, index, self.counts[:used])
        return counts


def _geometry(low: float, high: float) -> tuple[int, int]:
    """Return (exponent of the bin width, index of the first bin) for values in [low, high].

    A wider interval never gives a smaller exponent.
    """
    exponent = max(math.frexp(max(-low, high))[1] - INDEX_BITS, MIN_EXPONENT)
    if high > low:
        exponent = max(exponent, math.frexp(high - low)[1] - BINS.bit_length())
    while _bin_of(high, exponent) - _bin_of(low, exponent) >= BINS:
        exponent += 1
    return exponent, _bin_of(low, exponent)


def _bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _bin_indices(flat: torch.Tensor, exponent: int, first: int) -> torch.Tensor:
    # Scaling up by a power of two is exact; scaling down could lose the sign of a tiny negative value.
    wide = flat.double() if exponent > 0 else flat
    return (wide * math.ldexp(1.0, -exponent)).floor_().sub_(first).to(torch.int32)
