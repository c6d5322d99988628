"""Learn from a store how long a kernel will take that was never measured: trees over sizes and decisions.

What is learned is how far a kernel stays behind its roofline, one model for each kind of kernel; so what is
unlike all that was measured comes out near the roofline of its kind, not near another kernel's time.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from tvmq.bench import percentile
from tvmq.cost.roofline import features, roofline_us
from tvmq.cost.store import Measured
from tvmq.cost.works import Work
from tvmq.record import Record
from tvmq.target import TargetProfile
from tvmq.tune.cost_model import LEAST_SAMPLES, PARAMETERS

FOLDS = 5
GROWN = 150  # trees
TREES = {"max_depth": 4, "eta": 0.1, "lambda": 0.3}  # of data as few as a model's kernels
FROM_DRAM = "from_dram"
VARIANT = re.compile(r"( \{[^{}]*\})?( constants from \w+)?$")  # the end of Measured.cost
SMALL = 64.0  # what may be larger is looked at as a logarithm
LANES = 16.0  # of int32 in a register
DTYPES = ("int8", "uint8", "int16", "int32", "float32")


_Trained = tuple[tuple[str, ...], AbstractSet[str], Any]  # features, those as logarithms, the trees


@dataclass(frozen=True, slots=True)
class HeldOut(Record):
    """Errors of predictions, relative to what was measured, of kernels that the model had not seen."""

    kernels: int
    median: float
    p90: float
    kinds: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # median and p90 of each kind

    def __str__(self) -> str:
        found = f"median {100 * self.median:.0f} %, 90 % of them under {100 * self.p90:.0f} %"
        each = (
            f"{kind} {100 * half:.0f} and {100 * most:.0f} %" for kind, (half, most) in self.kinds.items()
        )
        kinds = f" ({', '.join(each)})" if len(self.kinds) > 1 else ""
        return f"predictions of {self.kernels} held-out kernels are off by {found}{kinds}"


def features_of(work: Work, threads: int, constants_from: str) -> dict[str, float]:
    """Return all that is learned from: sizes, the numbers of the kernel's key, its decisions."""
    found = features(work, threads) | {FROM_DRAM: float(constants_from == "dram")}
    if not work.use.kernel.packing:  # loops that TVM makes: what they do is in their name
        words = re.findall("[a-z]+", work.use.kernel.name)
        return (
            found
            | _loops_of(work)
            | {"operations": float(len(words))}
            | {f"does.{word}": 1.0 for word in words}
        )
    named = numbers_of(work.use.kernel.key)
    chosen = {f"chosen.{name}": number for name, number in numbers_of(dict(work.decisions)).items()}
    return found | named | chosen | waste_of(named, chosen)


def _loops_of(work: Work) -> dict[str, float]:
    """Return what loops over tensors depend on besides their sizes: which axes lie together, what is read."""
    shapes = [tuple(int(d) for d in p.shape) for p in work.use.kernel.function().params]
    given = [shape for shape, own in zip(shapes, work.use.arguments, strict=False) if own is None]
    last = [shape[-1] if shape else 1 for shape in shapes]
    return {
        "reads": float(len(given)),
        "axes": float(max(map(len, shapes), default=0)),
        "innermost": float(last[-1]) if last else 1.0,
        "innermost.read": float(min((shape[-1] if shape else 1 for shape in given), default=1)),
        "outer": float(shapes[-1][0]) if shapes and shapes[-1] else 1.0,
        "repeated": float(math.prod(shapes[-1]) / max(math.prod(given[0]), 1)) if shapes and given else 1.0,
    }


def numbers_of(key: Any, where: str = "") -> dict[str, float]:
    """Return the numbers in a kernel's key by where they stand, so that what one kernel lacks moves no other.

    Types count as the bytes of their elements, other text as nothing.
    """
    if isinstance(key, bool | int | float):
        return {where: float(key)}
    if isinstance(key, str):
        return {where: float(np.dtype(key).itemsize)} if key in DTYPES else {}
    if is_dataclass(key) and not isinstance(key, type):
        parts: Mapping[Any, Any] = {each.name: getattr(key, each.name) for each in fields(key)}
    elif isinstance(key, Mapping):
        parts = key
    else:
        parts = dict(enumerate(key)) if isinstance(key, tuple | list) else {}
    joined = (numbers_of(value, f"{where}.{name}" if where else str(name)) for name, value in parts.items())
    return {at: number for found in joined for at, number in found.items()}


def waste_of(named: Mapping[str, float], chosen: Mapping[str, float]) -> dict[str, float]:
    """Return by how much sizes grow when they are filled up to whole tiles: registers hold nothing less."""
    tiles = {"inputs": 4.0, "channels": 4.0, "outputs": LANES, "rows": chosen.get("chosen.row_tile", 1.0)}
    if "chosen.column_tile" in chosen:
        tiles["outputs"] = LANES * chosen["chosen.column_tile"]
    sized = {at: (number, tiles.get(at.rpartition(".")[2], 0.0)) for at, number in named.items()}
    return {
        f"waste.{at}": math.ceil(number / tile) * tile / number
        for at, (number, tile) in sized.items()
        if tile > 0 and number > 0
    }


class Predictor:
    """Predicts microseconds; what it knows is the lines of one setting. Without xgboost it knows nothing."""

    def __init__(self, lines: Sequence[Measured], profile: TargetProfile) -> None:
        self._profile = profile
        self._models: dict[str, _Trained] = {}
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

        names, large, booster = self._models[family]
        rows = xgboost.DMatrix(np.array([_row(_with_bounds(found, self._profile), names, large)], np.float32))
        return float(_base(found, self._profile) * math.exp(float(booster.predict(rows)[0])))


def held_out(lines: Sequence[Measured], profile: TargetProfile) -> HeldOut | None:
    """Return the errors of FOLDS models, each on the kernels that it was not trained on; None for too few."""
    errors: dict[str, list[float]] = {}
    for line, us in predicted_by_others(lines, profile):
        errors.setdefault(line.family, []).append(abs(us / line.us - 1))
    if not errors:
        return None
    kinds = {kind: _spread(own) for kind, own in sorted(errors.items())}
    every = [error for own in errors.values() for error in own]
    return HeldOut(len(every), *_spread(every), kinds)


def predicted_by_others(
    lines: Sequence[Measured], profile: TargetProfile
) -> Iterator[tuple[Measured, float]]:
    """Yield each line that nothing disturbed with the microseconds that other kernels promise of its own.

    A kernel is left out with all its lines; nothing is said where too few others are like it.
    """
    calm = [line for line in lines if not line.crowded]
    place = {kernel: i for i, kernel in enumerate(sorted({_kernel(line) for line in calm}))}
    for fold in range(FOLDS):
        predictor = Predictor([line for line in calm if place[_kernel(line)] % FOLDS != fold], profile)
        for line in calm:
            us = predictor.us(line.family, line.features) if place[_kernel(line)] % FOLDS == fold else None
            if us is not None:
                yield line, us


def _spread(errors: Sequence[float]) -> tuple[float, float]:
    """Return the median, and what 90 % are under."""
    ordered = sorted(errors)
    return percentile(ordered, 0.5), percentile(ordered, 0.9)


def _kernel(line: Measured) -> str:
    """Return which kernel a line is of, without its decisions and where its constants came from."""
    return VARIANT.sub("", line.cost)


def _trained(lines: Sequence[Measured], profile: TargetProfile) -> _Trained:
    import xgboost

    seen = [_with_bounds(line.features, profile) for line in lines]
    names = tuple(sorted({name for found in seen for name in found}))
    large = frozenset(name for name in names if max(found.get(name, 0.0) for found in seen) > SMALL)
    rows = np.array([_row(found, names, large) for found in seen], np.float32)
    targets = np.array([math.log(line.us / _base(line.features, profile)) for line in lines], np.float32)
    parameters = {**PARAMETERS, **TREES, "base_score": float(np.median(targets))}
    return names, large, xgboost.train(parameters, xgboost.DMatrix(rows, targets), GROWN)


def _row(found: Mapping[str, float], names: Sequence[str], large: AbstractSet[str]) -> list[float]:
    values = (found.get(name, math.nan) for name in names)
    return [math.log2(max(v, 0.0) + 1) if name in large else v for name, v in zip(names, values, strict=True)]


def _with_bounds(found: Mapping[str, float], profile: TargetProfile) -> dict[str, float]:
    """Return features with what the peak, and what memory, leave of the time."""
    base = _base(found, profile)
    moved = roofline_us({**found, "macs": 0.0}, profile, _level(found))
    return {**found, "base": base, "memory_share": moved / base}


def _base(found: Mapping[str, float], profile: TargetProfile) -> float:
    return roofline_us(found, profile, _level(found))


def _level(found: Mapping[str, float]) -> str:
    return "dram" if found.get(FROM_DRAM) else "l3"
