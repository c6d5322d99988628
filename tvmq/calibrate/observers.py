"""What range a tensor is quantized in: one class per method, by name in OBSERVERS.

All look at one histogram, so they stream, take fixed memory and give the same range for data in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.calibrate.aciq import clipped_range, gauss_factor, laplace_factor, spread_about_zero, spread_of
from tvmq.calibrate.grids import affine_parameters, range_with_zero, steps_of
from tvmq.calibrate.histogram import Array, Histogram
from tvmq.calibrate.range_errors import divergence, expected_error
from tvmq.calibrate.range_search import RangeSearch
from tvmq.errors import UsageError

PERCENTILE = 99.99
# The p of |error|**p that the published codes of BRECQ, QDrop and RepQ-ViT start from; LAPQ tries 2 to 3.
POWER = 2.4
BIT_WIDTHS = (4, 6, 8, 16)


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
        return _all_of(self.histogram, symmetric)

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
        return range_with_zero(
            self.histogram.quantile(1 - fraction), self.histogram.quantile(fraction), symmetric
        )


@dataclass(slots=True)
class LeastError(MinMax):
    """The range whose quantizer has the least mean |error|**p over the histogram; p = 2: squared error."""

    p: float = 2.0

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the best range found; never worse than minmax or than fewer of BIT_WIDTHS."""
        start = _all_of(self.histogram, symmetric)
        if start[0] == start[1]:
            return start
        search = RangeSearch(partial(expected_error, p=self.p), self.histogram, bits, symmetric, start)
        search.run()
        fewer = max((each for each in BIT_WIDTHS if each < bits), default=None)
        if fewer is not None:
            # The grid of fewer bits is part of ours at the same scale: so more bits are never worse.
            coarser = np.array(self.range(fewer, symmetric))
            search.offer(coarser[None, :] * (steps_of(bits, symmetric) / steps_of(fewer, symmetric)))
        return float(search.best[0]), float(search.best[1])


@dataclass(slots=True)
class LeastPowerError(LeastError):
    """LeastError by an L_p norm that dreads clipping a little more than the squared error does."""

    p: float = POWER


@dataclass(slots=True)
class Entropy(MinMax):
    """The range that keeps most of the distribution's information (TensorRT's entropy calibration)."""

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the range of least divergence found; never worse than minmax by divergence."""
        start = _all_of(self.histogram, symmetric)
        if start[0] == start[1]:
            return start
        search = RangeSearch(divergence, self.histogram, bits, symmetric, start)
        search.run()
        return float(search.best[0]), float(search.best[1])


@dataclass(slots=True)
class Aciq(MinMax):
    """The range that would be best for a Laplace or a normal distribution, or all values.

    Taking the shape of least analytic error would favour the normal one, whose tails are lighter, also for
    values with heavier ones: for Laplace's own, at 8 bits, that is over ten times the error of the right
    shape. The histogram knows better, and decides here.
    """

    def range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the range of least expected_error among candidates and all values."""
        start = _all_of(self.histogram, symmetric)
        if start[0] == start[1]:
            return start
        search = RangeSearch(expected_error, self.histogram, bits, symmetric, start)
        search.offer(np.array(self.candidates(bits, symmetric)))
        return float(search.best[0]), float(search.best[1])

    def candidates(self, bits: int, symmetric: bool) -> list[tuple[float, float]]:
        """Return the closed-form ranges of a Laplace and a normal distribution about the mean.

        For a grid about zero, or values on one side of it, also those about zero: the mean that the paper
        uses is then that of half a distribution, and half as much error again comes of it.
        """
        seen = self.histogram
        spreads = [spread_of(seen)]
        if symmetric or seen.minimum >= 0 or seen.maximum <= 0:
            spreads.append(spread_about_zero(seen))
        ends, steps, ranges = (seen.minimum, seen.maximum), steps_of(bits, symmetric), []
        for spread in spreads:
            for factor, unit in ((laplace_factor, spread.deviation), (gauss_factor, spread.sigma)):
                reach = partial(_reach, factor, unit)
                clipped = clipped_range(spread.mean, reach, *ends, steps=steps, symmetric=symmetric)
                ranges.append(range_with_zero(*clipped, symmetric))
        return ranges


OBSERVERS: dict[str, type[MinMax]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "mse": LeastError,
    "lp": LeastPowerError,
    "kl": Entropy,
    "aciq": Aciq,
    # These go on from the range of least error, by what they see of outputs (quantize/output_steps.py).
    "cosine": LeastError,
    "similarity": LeastError,
    "fisher": LeastError,
}


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


def _reach(factor: Callable[[int], float], unit: float, steps: int) -> float:
    return factor(steps) * unit


def _all_of(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    return range_with_zero(histogram.minimum, histogram.maximum, symmetric)
