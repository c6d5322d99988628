"""How fast an unmeasured decision will be: gradient boosted trees over decisions and shapes.

One model serves all kernels with the same choices, so what one shape taught helps the next.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.environment import INSTALL_COMPILER
from tvmq.errors import EnvironmentMismatchError
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.space import Decisions

LEAST_SAMPLES = 8  # under this many a model says nothing
ROUNDS = 60
FAILED_RATIO = 4.0  # what a failure counts for: a slow kernel, near which nothing good is expected
PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 6,
    "eta": 0.2,
    "min_child_weight": 1,
    "nthread": 1,
    "verbosity": 0,
    "seed": 0,
}

Family = tuple[Any, ...]


def require_xgboost() -> None:
    """Raise EnvironmentMismatchError unless xgboost is installed."""
    if importlib.util.find_spec("xgboost") is None:
        wanted = INSTALL_COMPILER.replace("[compile]", "[compile,tune]")
        raise EnvironmentMismatchError(f"environment: xgboost not installed, tuning needs it; run {wanted}")


def family(kernel: Kernel) -> Family:
    """Return what kernels must share so that one model can serve them."""
    return (*(len(part) for part in (_numbers(kernel.key), kernel.space.choices)), *kernel.space.choices)


def features(kernel: Kernel, decisions: Decisions) -> list[float]:
    """Return the shape and the decisions as numbers; text by its place among the choices."""
    chosen = [
        float(choices.index(decisions[name])) if isinstance(decisions[name], str) else float(decisions[name])
        for name, choices in kernel.space.choices.items()
    ]
    return _numbers(kernel.key) + chosen


def _numbers(key: Any) -> list[float]:
    """Return all numbers in a kernel's key, in order."""
    if isinstance(key, int | float):
        return [float(key)]
    parts = astuple(key) if is_dataclass(key) and not isinstance(key, type) else key
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return []
    return [number for part in parts for number in _numbers(part)]


class CostModel:
    """Predicts the logarithm of the time relative to the default decisions' of the same kernel."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []
        self._targets: list[float] = []
        self._booster: Any = None

    def learn(self, kernel: Kernel, decisions: Decisions, ratio: float) -> None:
        """Take in one measurement; inf for a failure."""
        self._rows.append(features(kernel, decisions))
        self._targets.append(math.log(min(ratio, FAILED_RATIO)))
        self._booster = None

    def predict(self, kernel: Kernel, candidates: Sequence[Decisions]) -> npt.NDArray[np.float32] | None:
        """Return one number per candidate, lower is faster; None while too little is known."""
        if len(self._rows) < LEAST_SAMPLES or not candidates:
            return None
        import xgboost

        if self._booster is None:
            known = xgboost.DMatrix(np.array(self._rows, np.float32), np.array(self._targets, np.float32))
            self._booster = xgboost.train(PARAMETERS, known, ROUNDS)
        wanted = np.array([features(kernel, decisions) for decisions in candidates], np.float32)
        found: npt.NDArray[np.float32] = self._booster.predict(xgboost.DMatrix(wanted))
        return found
