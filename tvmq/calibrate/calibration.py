"""What calibration hands to the later stages: frozen, bound to one module, kept in two files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi

from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import TensorStats, observer_for, quantization_range
from tvmq.errors import CalibrationError

SCHEMA = 1
CHANNEL_ARRAYS = ("low_per_channel", "high_per_channel", "mean_per_channel")
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ValueStats:
    """The statistics of one value of the module; the arrays are [C], or None for rank below two."""

    histogram: Histogram
    low_per_channel: Float32 | None = None
    high_per_channel: Float32 | None = None
    mean_per_channel: Float32 | None = None
    groups: tuple[Histogram, ...] = ()  # that of each group of samples, where kept apart; not saved to files

    @property
    def absmax_per_channel(self) -> Float32 | None:
        """Return the largest size of each channel's values, [C]."""
        if self.low_per_channel is None or self.high_per_channel is None:
            return None
        return np.asarray(np.maximum(-self.low_per_channel, self.high_per_channel))

    def stats(self, bits: int, symmetric: bool, method: str = "mse") -> TensorStats:
        """Return the range that method chooses for a quantizer of this kind."""
        chosen = observer_for(method, self.histogram).stats(bits, symmetric)
        absmax = self.absmax_per_channel
        return chosen if absmax is None else chosen.with_channels(absmax)

    def quantizer(self, bits: int, symmetric: bool, method: str = "mse") -> tuple[float, int]:
        """Return (scale, zero_point) for this value, as quantization_range does."""
        return quantization_range(self.histogram, bits, symmetric, method)


@dataclass(frozen=True, slots=True, eq=False)
class InputMoments:
    """The moments of a linear site's input x over all rows: its covariance [K, K] and mean [K].

    The covariance is about the mean, that of all rows alike, even where some count more in it: the mean is
    what a bias makes up for.
    """

    covariance: Float32
    mean: Float32
    rows: float  # that count alike and would say as much
    shift: Float32 | None = None  # from the mean to that of the rows as they count, [K]; None: no way

    @property
    def gram(self) -> Float32:
        """Return E[x x^T] [K, K], of the rows as they count."""
        plain = self.covariance + np.outer(self.mean, self.mean)
        if self.shift is None:
            return plain
        both = np.outer(self.mean, self.shift)
        return np.asarray(plain + both + both.T, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """The statistics of one module over one set of data."""

    module_hash: str
    data_hash: str  # SHA-256 of the batches: dtypes, shapes, bytes
    samples: int
    values: Mapping[str, ValueStats]  # by the name of a parameter or binding of main
    linear_inputs: Mapping[str, InputMoments]  # by site

    def require_module(self, mod: tvm.IRModule) -> None:
        """Refuse a module other than the one these statistics were collected on."""
        found = module_hash(mod)
        if found != self.module_hash:
            raise CalibrationError(
                f"calibration belongs to another module (hash {self.module_hash} != {found}); "
                "collect it again on this one"
            )

    def save(self, path: Path) -> None:
        """Write scalars as JSON to path and arrays to path + .npz; both are needed to load."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for index, stats in enumerate(self.values.values()):
            arrays[f"counts.{index}"] = stats.histogram.counts
            for kind in CHANNEL_ARRAYS:
                array = getattr(stats, kind)
                if array is not None:
                    arrays[f"{kind}.{index}"] = array
        # Sites that share an input share its moments, in memory and in the file.
        moments = {id(each): each for each in self.linear_inputs.values()}
        order = {key: index for index, key in enumerate(moments)}
        for key, each in moments.items():
            arrays[f"covariance.{order[key]}"], arrays[f"mean.{order[key]}"] = each.covariance, each.mean
            if each.shift is not None:
                arrays[f"shift.{order[key]}"] = each.shift
        document = {
            "schema": SCHEMA,
            "module_hash": self.module_hash,
            "data_hash": self.data_hash,
            "samples": self.samples,
            "values": {name: _value_json(stats) for name, stats in self.values.items()},
            "moments": [{"rows": each.rows} for each in moments.values()],
            "linear_inputs": {site: order[id(each)] for site, each in self.linear_inputs.items()},
        }
        with _arrays_path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what save wrote; CalibrationError when a file is absent or damaged."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise ValueError(f"schema {document['schema']} is not {SCHEMA}")
            with _arrays_path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _from_document(document, arrays)
        except (OSError, ValueError, KeyError, IndexError, TypeError, BadZipFile) as error:
            raise CalibrationError(
                f"{path}: cannot be read as a calibration ({error}); collect it again"
            ) from error


def module_hash(mod: tvm.IRModule) -> str:
    """Return the structural hash of a module: 16 hex digits, blind to names, not to weights."""
    return f"{tvm_ffi.structural_hash(mod) & (2**64 - 1):016x}"


def _from_document(document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Calibration:
    values = {
        name: _value_from_json(each, index, arrays)
        for index, (name, each) in enumerate(document["values"].items())
    }
    moments = [
        InputMoments(
            arrays[f"covariance.{index}"], arrays[f"mean.{index}"], each["rows"], arrays.get(f"shift.{index}")
        )
        for index, each in enumerate(document["moments"])
    ]
    return Calibration(
        module_hash=document["module_hash"],
        data_hash=document["data_hash"],
        samples=document["samples"],
        values=MappingProxyType(values),
        linear_inputs=MappingProxyType(
            {site: moments[index] for site, index in document["linear_inputs"].items()}
        ),
    )


def _value_json(stats: ValueStats) -> dict[str, Any]:
    seen = stats.histogram
    empty = seen.count == 0  # nothing finite was seen; JSON has no infinity
    return {
        "minimum": None if empty else seen.minimum,
        "maximum": None if empty else seen.maximum,
        "count": seen.count,
        "total": seen.total,
    }


def _value_from_json(
    entry: Mapping[str, Any], index: int, arrays: Mapping[str, npt.NDArray[Any]]
) -> ValueStats:
    if entry["minimum"] is None:
        histogram = Histogram.empty()
    else:
        histogram = Histogram(arrays[f"counts.{index}"], entry["minimum"], entry["maximum"], entry["total"])
    names = [f"{kind}.{index}" for kind in CHANNEL_ARRAYS]
    low, high, mean = (arrays.get(name) for name in names)
    return ValueStats(histogram, low, high, mean)


def _arrays_path(path: Path) -> Path:
    return path.with_name(path.name + ".npz")
