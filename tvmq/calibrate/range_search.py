"""Search the range of least error, from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmq.calibrate.grids import FloatArray, affine_parameters
from tvmq.calibrate.histogram import Histogram

# The error [C] of quantizers: (histogram, scale [C], zero_point [C], bits, symmetric).
RangeError = Callable[[Histogram, FloatArray, FloatArray, int, bool], FloatArray]

# Each end is first brought nearer to zero in every combination, as where one is best depends on the other;
# each fine round then looks that many octaves to either side of the best.
COARSE_OCTAVES = 7.0
COARSE = np.append(np.exp2(-np.arange(0, COARSE_OCTAVES + 0.5, 0.5)), 0.0)
COARSE_ONE = np.exp2(-np.arange(0, COARSE_OCTAVES + 0.125, 0.125))  # where only one end is free
FINE = tuple(np.exp2(np.linspace(-octaves, octaves, 9)) for octaves in (0.25, 0.0625))
AT_ONCE = 16  # quantizers: their arrays over the bins stay in the cache


class RangeSearch:
    """The best range [2] so far, which contains zero, and its error."""

    def __init__(
        self, error: RangeError, histogram: Histogram, bits: int, symmetric: bool, start: tuple[float, float]
    ) -> None:
        self._error, self._histogram, self._bits, self._symmetric = error, histogram, bits, symmetric
        self.best = np.array(start)
        self.error = self._errors(self.best[None, :])[0]

    def run(self) -> None:
        """Try ranges inside the first one: both ends in all combinations, or together when symmetric."""
        one = self._symmetric or not self.best.all()
        for factors in (COARSE_ONE if one else COARSE, *FINE):
            low, high = (factors, factors) if self._symmetric else np.meshgrid(factors, factors)
            ranges = self.best * np.stack([low.ravel(), high.ravel()], axis=1)
            self.offer(np.unique(ranges[ranges[:, 0] < ranges[:, 1]], axis=0))

    def offer(self, ranges: FloatArray) -> None:
        """Try these ranges [C, 2], C > 0; only one that is better replaces the best."""
        parts = np.array_split(ranges, -(-len(ranges) // AT_ONCE))
        errors = np.concatenate([self._errors(part) for part in parts])
        index = int(errors.argmin())
        if errors[index] < self.error:
            self.best, self.error = ranges[index], errors[index]

    def _errors(self, ranges: FloatArray) -> FloatArray:
        parameters = affine_parameters(ranges, self._bits, self._symmetric)
        return self._error(self._histogram, *parameters, self._bits, self._symmetric)
