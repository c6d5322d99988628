"""Learn from a store how long a kernel will take that was never measured: trees over sizes and decisions.

What is learned is how far a kernel stays behind its roofline, one model for each kind of kernel; so what is
unlike all that was measured comes out near the roofline of its kind, not near another kernel's time.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmq.bench import percentile
from tvmq.cost.roofline import features, roofline_us
from tvmq.cost.store import Measured
from tvmq.cost.works import Work
from tvmq.record import Record
from tvmq.target import TargetProfile
from tvmq.tune.cost_model import LEAST_SAMPLES, PARAMETERS, ROUNDS
from tvmq.tune.cost_model import features as decided

FOLDS = 5
FROM_DRAM = "from_dram"
VARIANT = re.compile(r"( \{[^{}]*\})?( constants from \w+)?$")  # the end of Measured.cost
LOGARITHMIC = ("macs", "constant_bytes", "input_bytes", "output_bytes", "elements")


@dataclass(frozen=True, slots=True)
class HeldOut(Record):
    """Errors of predictions, relative to what was measured, of kernels that the model had not seen."""

    kernels: int
    median: float
    p90: float

    def __str__(self) -> str:
        found = f"median {100 * self.median:.0f} %, 90 % of them under {100 * self.p90:.0f} %"
        return f"predictions of {self.kernels} held-out kernels are off by {found}"


def features_of(work: Work, threads: int, constants_from: str) -> dict[str, float]:
    """Return all that is learned from: sizes, the numbers of the kernel's key, its decisions."""
    found = features(work, threads) | {FROM_DRAM: float(constants_from == "dram")}
    if work.family == "loops":
        return found
    return found | {f"key{i}": n for i, n in enumerate(decided(work.use.kernel, work.decisions))}


class Predictor:
    """Predicts microseconds; what it knows is the lines of one setting. Without xgboost it knows nothing."""

    def __init__(self, lines: Sequence[Measured], profile: TargetProfile) -> None:
        self._profile = profile
        self._models: dict[str, tuple[tuple[str, ...], Any]] = {}
        if importlib.util.find_spec("xgboost") is None:
            return
        for family in sorted({line.family for line in lines}):
            own = [line for line in lines if line.family == family]
            if len(own) >= LEAST_SAMPLES:
                self._models[family] = _trained(own, profile)

    def us(self, family: str, found: Mapping[str, float]) -> float | None:
        """Return the time of a kernel with these features; None where too little like it was measured."""
        if family not in self._models:
            return None
        import xgboost

        names, booster = self._models[family]
        rows = xgboost.DMatrix(np.array([_row(found, names)], np.float32))
        return float(_base(found, self._profile) * math.exp(float(booster.predict(rows)[0])))


def held_out(lines: Sequence[Measured], profile: TargetProfile) -> HeldOut | None:
    """Return the errors of FOLDS models, each on the kernels that it was not trained on; None for too few.

    A kernel is left out with all its lines: of other decisions, and with its constants elsewhere.
    """
    calm = [line for line in lines if not line.crowded]
    place = {kernel: i for i, kernel in enumerate(sorted({_kernel(line) for line in calm}))}
    errors = []
    for fold in range(FOLDS):
        own = [line for line in calm if place[_kernel(line)] % FOLDS == fold]
        predictor = Predictor([line for line in calm if place[_kernel(line)] % FOLDS != fold], profile)
        for line in own:
            us = predictor.us(line.family, line.features)
            if us is not None:
                errors.append(abs(us / line.us - 1))
    if not errors:
        return None
    errors.sort()
    return HeldOut(len(errors), percentile(errors, 0.5), percentile(errors, 0.9))


def _kernel(line: Measured) -> str:
    """Return which kernel a line is of, without its decisions and where its constants came from."""
    return VARIANT.sub("", line.cost)


def _trained(lines: Sequence[Measured], profile: TargetProfile) -> tuple[tuple[str, ...], Any]:
    import xgboost

    names = tuple(sorted({name for line in lines for name in line.features}))
    rows = np.array([_row(line.features, names) for line in lines], np.float32)
    targets = np.array([math.log(line.us / _base(line.features, profile)) for line in lines], np.float32)
    parameters = {**PARAMETERS, "max_depth": 4, "base_score": float(np.median(targets))}
    return names, xgboost.train(parameters, xgboost.DMatrix(rows, targets), ROUNDS)


def _row(found: Mapping[str, float], names: Sequence[str]) -> list[float]:
    values = (found.get(name, math.nan) for name in names)
    return [math.log2(v + 1) if n in LOGARITHMIC else v for n, v in zip(names, values, strict=True)]


def _base(found: Mapping[str, float], profile: TargetProfile) -> float:
    return roofline_us(found, profile, "dram" if found.get(FROM_DRAM) else "l3")
