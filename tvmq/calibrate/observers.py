"""What range a tensor is quantized in: minmax, a percentile, or the range of least expected error.

Quantizers: affine unsigned, q in [0, 2**bits - 1] and real = scale * (q - zero_point), where 0.0 is exactly
q = zero_point; or symmetric signed, q in [-(2**(bits-1) - 1), 2**(bits-1) - 1] and zero_point = 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.calibrate.histogram import Array, Histogram
from tvmq.errors import UsageError

FloatArray = npt.NDArray[np.float64]

PERCENTILE = 99.99
SMALLEST_SCALE = 2.0**-126  # the smallest normal float32
# The search for the least error halves the range at most COARSE_OCTAVES times, first in quarter octaves; each
# fine round then looks that many octaves to either side of the best.
COARSE_OCTAVES = 7
COARSE_STEPS = 4 * COARSE_OCTAVES + 1
FINE_OCTAVES = (0.25, 0.0625)
FINE_STEPS = 9
FEWEST_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats:
    """The range chosen for one tensor and what it was chosen from; low <= 0 <= high."""

    low: float
    high: float
    minimum: float
    maximum: float
    count: int  # values seen
    absmax_per_channel: tuple[float, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return asdict(self)

    def with_channels(self, absmax: npt.NDArray[np.float32]) -> TensorStats:
        """Return these stats with the largest size of each channel's values, [C]."""
        return replace(self, absmax_per_channel=tuple(absmax.tolist()))


@dataclass(slots=True)
class MinMax:
    """All values seen: nothing is clipped."""

    histogram: Histogram = field(default_factory=Histogram.empty)

    def update(self, values: Array) -> None:
        """Count a tensor's values."""
        self.histogram = self.histogram.merge(Histogram.of(values))

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return (low, high), low <= 0 <= high, low == -high when symmetric; here bits changes nothing."""
        return _with_zero(self.histogram.minimum, self.histogram.maximum, symmetric)

    def stats(self, bits: int, symmetric: bool) -> TensorStats:
        """Return the chosen range with what it was chosen from."""
        low, high = self.range(bits, symmetric)
        seen = self.histogram
        return TensorStats(low=low, high=high, minimum=seen.minimum, maximum=seen.maximum, count=seen.count)


@dataclass(slots=True)
class Percentile(MinMax):
    """All but the (100 - percent) per cent of the values at either end."""

    percent: float = PERCENTILE

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the range between the two quantiles; bits changes nothing."""
        if self.histogram.count == 0:
            return 0.0, 0.0
        fraction = self.percent / 100
        return _with_zero(self.histogram.quantile(1 - fraction), self.histogram.quantile(fraction), symmetric)


@dataclass(slots=True)
class LeastError(MinMax):
    """The range whose quantizer has the least expected squared error over the histogram."""

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the best range found from coarse to fine; never worse than minmax by expected_error."""
        low, high = _with_zero(self.histogram.minimum, self.histogram.maximum, symmetric)
        if low == high:
            return low, high
        search = _Search(self.histogram, bits, symmetric, np.array([low, high]))
        coarse = np.linspace(0, -COARSE_OCTAVES, COARSE_STEPS)
        search.scale(coarse, low=True, high=True)
        if not symmetric:
            search.scale(coarse, low=False, high=True)
            search.scale(coarse, low=True, high=False)
        for octaves in FINE_OCTAVES:
            fine = np.linspace(-octaves, octaves, FINE_STEPS)
            search.scale(fine, low=symmetric, high=True)
            search.scale(fine, low=True, high=symmetric)
        if bits >= 2 * FEWEST_BITS:
            # The grid of half the bits is part of ours at the same scale: so more bits are never worse.
            half = np.array(self.range(bits // 2, symmetric))
            search.offer(half[None, :] * (_steps(bits, symmetric) / _steps(bits // 2, symmetric)))
        return float(search.best[0]), float(search.best[1])


OBSERVERS: dict[str, type[MinMax]] = {"minmax": MinMax, "percentile": Percentile, "mse": LeastError}


def observer_for(method: str, histogram: Histogram) -> MinMax:
    """Return the observer of this name over values already counted."""
    if method not in OBSERVERS:
        raise UsageError(f"calibration method {method!r} is unknown; choose one of {sorted(OBSERVERS)}")
    return OBSERVERS[method](histogram)


def quantization_range(
    histogram: Histogram, bits: int, symmetric: bool, method: str = "mse"
) -> tuple[float, int]:
    """Return (scale, zero_point) of the quantizer for a tensor; scale is a float32 value > 0."""
    low, high = observer_for(method, histogram).range(bits, symmetric)
    scale, zero_point = affine_parameters(np.array([low, high]), bits, symmetric)
    return float(np.float32(scale)), int(zero_point)


def affine_parameters(ranges: FloatArray, bits: int, symmetric: bool) -> tuple[FloatArray, FloatArray]:
    """Return (scale [...], whole zero_point [...]) of ranges [..., 2] that contain zero.

    The error of rounding is at most scale / 2 over the whole range, though moving zero_point to a whole
    number moves the ends of the grid by up to that. An empty range has scale 1.
    """
    low, high = ranges[..., 0], ranges[..., 1]
    qmin, qmax = integer_range(bits, symmetric)
    scale = np.maximum((high - low) / (qmax - qmin), SMALLEST_SCALE)
    scale = np.where(high > low, scale, 1.0)
    return scale, np.zeros_like(scale) if symmetric else np.clip(np.floor(0.5 - low / scale), qmin, qmax)


def integer_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the least and the greatest quantized value."""
    largest = 2 ** (bits - 1) - 1
    return (-largest, largest) if symmetric else (0, 2**bits - 1)


def expected_error(
    histogram: Histogram, scale: FloatArray, zero_point: FloatArray, bits: int, symmetric: bool
) -> FloatArray:
    """Return the mean squared error of quantizing, per quantizer [C], values being uniform within each bin.

    With u = x / scale and n the whole number that u is rounded to, held within the grid, the integral of
    (u - n)**2 from 0 to u is n / 12 + (u - n)**3 / 3: exact for rounding and for clipping alike.
    """
    edges, counts = histogram.occupied()
    qmin, qmax = integer_range(bits, symmetric)
    zero = zero_point[:, None]
    u = edges[None, :] / scale[:, None]
    n = np.clip(np.rint(u), qmin - zero, qmax - zero)
    u -= n
    integral = u * u * u
    integral *= 1 / 3
    integral += n * (1 / 12)
    mean_u = np.diff(integral, axis=1) @ (counts / counts.sum())
    return np.asarray(mean_u * scale**3 / histogram.width)


class _Search:
    """The best range [2] so far and its error."""

    def __init__(self, histogram: Histogram, bits: int, symmetric: bool, start: FloatArray) -> None:
        self.histogram, self.bits, self.symmetric = histogram, bits, symmetric
        self.best = start
        self.error = self._errors(start[None, :])[0]

    def scale(self, octaves: FloatArray, *, low: bool, high: bool) -> None:
        """Try the best range with its low end, high end or both multiplied by 2**octaves."""
        factors = np.ones((len(octaves), 2))
        factors[:, 0] += low * (np.exp2(octaves) - 1)
        factors[:, 1] += high * (np.exp2(octaves) - 1)
        self.offer(self.best * factors)

    def offer(self, ranges: FloatArray) -> None:
        """Try these ranges [C, 2]."""
        errors = self._errors(ranges)
        index = int(errors.argmin())
        if errors[index] < self.error:
            self.best, self.error = ranges[index], errors[index]

    def _errors(self, ranges: FloatArray) -> FloatArray:
        parameters = affine_parameters(ranges, self.bits, self.symmetric)
        return expected_error(self.histogram, *parameters, self.bits, self.symmetric)


def _steps(bits: int, symmetric: bool) -> int:
    qmin, qmax = integer_range(bits, symmetric)
    return qmax - qmin


def _with_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    if low > high:  # nothing was seen
        return 0.0, 0.0
    if symmetric:
        return -max(-low, high), max(-low, high)
    return min(low, 0.0), max(high, 0.0)
