"""How values are stored at the qdq and integer levels: the numbers that a plan leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmq.numerics import INTEGER_RANGE
from tvmq.record import Record
from tvmq.spec import Scale


@dataclass(frozen=True, slots=True)
class ValueFormat(Record):
    """What the consumers of one float value want it stored as."""

    dtype: str  # "uint8" | "int8" | "int16"
    region: str  # name of the region's first value; one scale for all values of a region
    also_uint8: bool = False  # int16 for the residual trunk, and uint8 for a linear
    unary: str | None = None  # the unary function that is the only consumer ("gelu"), if any


@dataclass(frozen=True, slots=True)
class QuantParams(Record):
    """real = scale * (q - zero_point), q of dtype; scale > 0 and exact in float32."""

    scale: float
    zero_point: int
    dtype: str

    def __post_init__(self) -> None:
        low, high = INTEGER_RANGE[self.dtype]
        if not (self.scale > 0 and low <= self.zero_point <= high):
            raise ValueError(f"no {self.dtype} has scale {self.scale} and zero point {self.zero_point}")


@dataclass(frozen=True, slots=True)
class QuantizedWeight(Record):
    """values int8, shaped as the float weight; scale float32 [outputs], one per output channel."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quantization(Record):
    """Every number that insert_qdq writes into the graph."""

    values: Mapping[str, QuantParams]  # by value name
    also_uint8: Mapping[str, QuantParams]  # second storage of an int16 value
    constants: Mapping[str, QuantParams]  # storage of the constant operands of this add or concat
    weights: Mapping[str, QuantizedWeight]  # by site
    biases: Mapping[str, npt.NDArray[np.float32]]  # by bias node: the corrected bias
    uint8_readers: frozenset[str]  # nodes that read the uint8 copy of an int16 value

    def scales(self) -> tuple[Scale, ...]:
        """Return how every tensor is stored, values first, each kind in graph order."""
        stored = [("value", self.values), ("uint8 copy", self.also_uint8), ("constant", self.constants)]
        per_tensor = [
            Scale(name, role, params.dtype, params.zero_point, params.scale, params.scale)
            for role, group in stored
            for name, params in group.items()
        ]
        per_channel = [
            Scale(site, "weight", "int8", 0, float(weight.scale.min()), float(weight.scale.max()))
            for site, weight in self.weights.items()
        ]
        return (*per_tensor, *per_channel)
