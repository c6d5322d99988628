"""How values are stored at the qdq and integer levels: the numbers that a plan leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tvmq.numerics import INTEGER_RANGE
from tvmq.record import Record
from tvmq.spec import Scale

PACKED_BITS = range(2, 7)  # of weights that kernels unpack as fast as they multiply; others take a byte


@dataclass(frozen=True, slots=True)
class ValueFormat(Record):
    """What the consumers of one float value want it stored as."""

    dtype: str  # "uint8" | "int8" | "int16"
    region: str  # name of the region's first value; one scale for all values of a region
    also_uint8: bool = False  # int16 for the residual trunk, and uint8 for a linear
    unary: str | None = None  # the unary function that is the only consumer ("gelu"), if any
    bits: int = 8  # of what is stored as uint8 (for int16, its uint8 copy) or int8


@dataclass(frozen=True, slots=True)
class QuantParams(Record):
    """real = scale * (q - zero_point), q of dtype; scale > 0 and exact in float32."""

    scale: float
    zero_point: int
    dtype: str
    limits: tuple[int, int] | None = None  # the least and the greatest q; None: all that dtype holds
    codes: tuple[int, ...] | None = None  # of uint8, ascending: q is the nearest; None: any in the limits

    def __post_init__(self) -> None:
        low, high = INTEGER_RANGE[self.dtype]
        if not (self.scale > 0 and low <= self.zero_point <= high):
            raise ValueError(f"no {self.dtype} has scale {self.scale} and zero point {self.zero_point}")
        if self.limits is not None and not low <= self.low <= self.high <= high:
            raise ValueError(f"no {self.dtype} lies from {self.low} to {self.high}")
        if self.codes is not None and not _ascends(self.codes, self.low, self.high, self.dtype):
            raise ValueError(f"no codes of {self.stored_as}: {self.codes}")
        if self.limits == (low, high):  # one way to say it, so that equal parameters compare equal
            object.__setattr__(self, "limits", None)

    @property
    def low(self) -> int:
        """Return the least q."""
        return INTEGER_RANGE[self.dtype][0] if self.limits is None else self.limits[0]

    @property
    def high(self) -> int:
        """Return the greatest q."""
        return INTEGER_RANGE[self.dtype][1] if self.limits is None else self.limits[1]

    @property
    def real_limits(self) -> tuple[float, float]:
        """Return the numbers that low and high stand for, as float32 arithmetic gives them."""
        scale = np.float32(self.scale)
        low, high = (float(scale * np.float32(q - self.zero_point)) for q in (self.low, self.high))
        return low, high

    def limited(self, low: int, high: int) -> QuantParams:
        """Return the same with limits no wider than low..high; a single q where these do not overlap."""
        first = min(max(low, self.low), self.high)
        return replace(self, limits=(first, max(min(high, self.high), first)))

    def aligned(self, other: QuantParams) -> bool:
        """Tell whether a q stands for the same number in both."""
        mine, others = ((params.scale, params.zero_point, params.dtype) for params in (self, other))
        return mine == others

    @property
    def stored_as(self) -> str:
        """Return dtype, by fewer bits where the limits are all that these hold: "uint4".

        Of codes, how many there are: "uint8, 16 codes".
        """
        if self.codes is not None:
            return f"{self.dtype}, {len(self.codes)} codes"
        bits = (self.high - self.low).bit_length()
        kind = self.dtype.rstrip("0123456789")
        return f"{kind}{bits}" if code_limits(self.dtype, bits) == self.limits else self.dtype


def code_limits(dtype: str, bits: int) -> tuple[int, int]:
    """Return the least and the greatest number of so many bits, of a dtype's signedness."""
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _ascends(codes: tuple[int, ...], low: int, high: int, dtype: str) -> bool:
    """Whether codes are those of a uint8 within limits, each once and in order."""
    known = dtype == "uint8" and len(codes) > 0 and low <= codes[0] and codes[-1] <= high
    return known and all(a < b for a, b in pairwise(codes))


@dataclass(frozen=True, slots=True)
class QuantizedWeight(Record):
    """values int8, shaped as the float weight; scale float32 [outputs], one per output channel."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bits: int = 8  # what the two's complement of every value fits


def bits_of(values: npt.NDArray[np.int8]) -> int:
    """Return the bits, 2 at least, that the two's complement of every value fits."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return max(2, 1 + max(high, ~low).bit_length())


@dataclass(frozen=True, slots=True)
class Quantization(Record):
    """Every number that insert_qdq writes into the graph."""

    values: Mapping[str, QuantParams]  # by value name
    also_uint8: Mapping[str, QuantParams]  # second storage of an int16 value
    constants: Mapping[str, QuantParams]  # storage of the constant operands of this add or concat
    weights: Mapping[str, QuantizedWeight]  # by site
    biases: Mapping[str, npt.NDArray[np.float32]]  # by bias node: the corrected bias
    uint8_readers: frozenset[str]  # nodes that read the uint8 copy of an int16 value
    left_float: frozenset[str] = frozenset()  # sites that stay in float though integers lie around them

    def scales(self) -> tuple[Scale, ...]:
        """Return how every tensor is stored, values first, each kind in graph order."""
        stored = [("value", self.values), ("uint8 copy", self.also_uint8), ("constant", self.constants)]
        per_tensor = [
            Scale(name, role, params.stored_as, params.zero_point, params.scale, params.scale)
            for role, group in stored
            for name, params in group.items()
        ]
        per_channel = [
            Scale(
                site, "weight", f"int{weight.bits}", 0, float(weight.scale.min()), float(weight.scale.max())
            )
            for site, weight in self.weights.items()
        ]
        return (*per_tensor, *per_channel)
