"""Refine many scales together by the loss of the whole model: LAPQ, Nahshan et al. 2019, section 4.

With few bits the best scale of one layer depends on those of others. LAPQ starts from layer-wise L_p ranges,
with the p whose loss is least, and goes on with Powell's method. The loss is the caller's; it must come from
calibration data, never from data the result is judged by.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from tvmq.calibrate.grids import FloatArray
from tvmq.progress import Progress, silent

POWERS = (2.0, 2.5, 3.0)  # whose loss the paper measures
POWER_RANGE = (1.0, 5.0)
OCTAVES = 1.0
EVALUATIONS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """What refine found, the loss before and after, and how many losses it took."""

    scales: FloatArray
    loss: float
    start_loss: float
    evaluations: int


class _SpentError(Exception):
    """The budget is used up."""


def best_power(losses: Sequence[tuple[float, float]], between: tuple[float, float] = POWER_RANGE) -> float:
    """Return the p of least loss by the parabola through (p, loss), three or more, held within a range.

    Where there is no parabola with a lowest point: the p of the least loss given.
    """
    finite = [(p, loss) for p, loss in losses if math.isfinite(loss)]
    if not finite:
        raise ValueError("best_power: no finite loss is given; (p, loss) of three p are wanted")
    fallback = min(finite, key=lambda pair: pair[1])[0]
    p, loss = np.array(finite, np.float64).T
    if len(np.unique(p)) < 3:
        return fallback
    a, b, _ = np.polyfit(p - p.mean(), loss, 2)
    if a <= 1e-12 * np.abs(loss).max():
        return fallback
    return float(np.clip(p.mean() - b / (2 * a), *between))


def refine(
    scales: FloatArray,
    loss: Callable[[FloatArray], float],
    *,
    octaves: float = OCTAVES,
    evaluations: int = EVALUATIONS,
    progress: Progress = silent,
) -> Refined:
    """Return the scales [S] of least loss that Powell's method sees, never worse than those given.

    Each may be multiplied by up to 2**octaves or 2**-octaves. loss is asked at most `evaluations` times, the
    start included; a loss that is not finite counts as worse than any.
    """
    search = _Seen(np.asarray(scales, np.float64), loss, evaluations, progress)
    start_loss = search(np.zeros(len(scales)))
    if len(scales) and evaluations > 1:
        with contextlib.suppress(_SpentError):
            minimize(
                search,
                np.zeros(len(scales)),
                method="Powell",
                bounds=[(-octaves, octaves)] * len(scales),
                options={"xtol": 1e-2, "ftol": 1e-4},
            )
    progress("refine scales", 1, 1)
    return Refined(search.best, search.least, start_loss, search.asked)


class _Seen:
    """The loss as a function of log2 factors [S], within its budget; remembers the best."""

    def __init__(
        self, scales: FloatArray, loss: Callable[[FloatArray], float], budget: int, progress: Progress
    ) -> None:
        self._scales, self._loss, self._budget, self._progress = scales, loss, budget, progress
        self._worst = 0.0
        self.best, self.least, self.asked = scales, math.inf, 0

    def __call__(self, octaves: FloatArray) -> float:
        if self.asked >= self._budget:
            raise _SpentError
        self._progress("refine scales", self.asked, self._budget)
        self.asked += 1
        tried = self._scales * np.exp2(octaves)
        value = float(self._loss(tried))
        if not math.isfinite(value):
            return 2 * self._worst + 1  # Powell fits parabolas: an infinity would spoil them
        self._worst = max(self._worst, value)
        if value < self.least:
            self.best, self.least = tried, value
        return value
