"""How far activation scales would move if other samples had been drawn: are there enough of them?

Calibration deals its batches to GROUPS groups and keeps a histogram of each. Scales chosen on one half of the
groups and on the other differ twice as much (in standard deviations, by their logarithms) as scales of whole
sets like this one do from what is true of all data: each half has half of the samples, and both are off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.calibrate.findings import Finding, Kind
from tvmq.calibrate.grids import affine_parameters
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import observer_for

GROUPS = 8
SPLITS = 2  # random halvings of the groups
MOST_VALUES = 40  # of a model that are looked at; choosing a scale takes milliseconds
# Of so few numbers the extremes, and with them the scale, are a matter of luck whatever the data is.
FEWEST_NUMBERS = 4096
FEWEST_VALUES = 8  # a share of fewer values says nothing
LARGE_MOVE = 0.10
TOLERATED = 0.05  # share of the values whose scale may move so far; 16 photos leave 1 % of a ViT-S's
WANTED_MOVE = 0.05  # the move that the advised number of samples would leave, of all but TOLERATED
MOST_ADVISED = 512


@dataclass(frozen=True, slots=True)
class Stability:
    """How far scales would move with other samples, as a share: 0.1 is 10 per cent up or down."""

    samples: int
    moves: Mapping[str, float]  # by value name

    @property
    def moving(self) -> int:
        """Return how many scales move far."""
        return sum(move > LARGE_MOVE for move in self.moves.values())

    def findings(self) -> tuple[Finding, ...]:
        """Return the finding that there are too few samples, if their scales say so."""
        looked_at = len(self.moves)
        if looked_at < FEWEST_VALUES or self.moving <= TOLERATED * looked_at:
            return ()
        worst = float(np.quantile(list(self.moves.values()), 1 - TOLERATED))
        # The move falls with the root of the number of samples.
        wanted = self.samples * max((worst / WANTED_MOVE) ** 2, 2.0)
        advised = min(2 ** math.ceil(math.log2(wanted)), max(MOST_ADVISED, 2 * self.samples))
        return (
            Finding(
                Kind.FEW_SAMPLES,
                f"with these {self.samples} samples, {self.moving} of {looked_at} scales would change by "
                f"more than {100 * LARGE_MOVE:.0f} % if others were drawn",
                "what the model sees later is clipped, or stored coarser than it need be",
                f"give about {advised} samples, as different as those that the model will meet",
                {"samples": self.samples, "moving": self.moving, "scales": looked_at, "advised": advised},
            ),
        )


def stability(
    calibration: Calibration, symmetric: Mapping[str, bool], *, method: str = "mse", seed: int = 0
) -> Stability:
    """Measure how far the scales of these values would move; symmetric: how each of them is stored.

    Values whose batches make a single group, or hold few numbers, are left out, as are all but MOST_VALUES.
    """
    rng = np.random.default_rng(seed)
    known = [name for name in symmetric if _telling(calibration.values.get(name))]
    looked_at = min(len(known), MOST_VALUES)
    names = [known[i * len(known) // looked_at] for i in range(looked_at)]
    moves = {name: _move(calibration.values[name].groups, symmetric[name], method, rng) for name in names}
    return Stability(calibration.samples, moves)


def _telling(stats: ValueStats | None) -> bool:
    return stats is not None and len(stats.groups) > 1 and stats.histogram.count >= 2 * FEWEST_NUMBERS


def _move(groups: Sequence[Histogram], symmetric: bool, method: str, rng: np.random.Generator) -> float:
    """Return by what share the scale of a value would move."""
    half = len(groups) // 2
    squares = []
    for _ in range(SPLITS if len(groups) > 2 else 1):
        order = rng.permutation(len(groups))
        one, other = (
            _log_scale(reduce(Histogram.merge, (groups[i] for i in part)), symmetric, method)
            for part in (order[:half], order[half : 2 * half])
        )
        squares.append(((one - other) / 2) ** 2)
    return math.expm1(math.sqrt(sum(squares) / len(squares)))


def _log_scale(histogram: Histogram, symmetric: bool, method: str) -> float:
    low, high = observer_for(method, histogram).range(8, symmetric)
    scale, _ = affine_parameters(np.array([low, high]), 8, symmetric)
    return math.log(float(scale))
