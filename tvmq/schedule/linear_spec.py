"""What one integer linear kernel computes, and the layout of what it reads.

x is uint8 [rows, inputs]. The weight is packed as `pack_weight` does it, [groups, inputs/4, 16, 4]: the 64
bytes that one instruction multiplies lie together. Vectors over the outputs are padded to whole groups
of 16; x, the residual and the output are not padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.numerics import INTEGER_RANGE

LANES = 16  # outputs of a group: one 512-bit register of 32-bit sums
DEPTH = 4  # inputs that one instruction multiplies per output
TABLE_SIZE = 256
OUT_DTYPES = ("uint8", "int8", "int16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One kernel: its shape and what happens to the sums."""

    rows: int
    inputs: int
    outputs: int
    out_dtype: str
    residual: bool = False  # add int16 [rows, outputs] before the clip
    table: bool = False  # replace the clipped uint8 by table[it]
    fixed_point: bool = False  # requantize by multiplier and shift, not by shift alone
    gain: bool = False  # multiply sums by a small number, in int32, before they are shifted
    zero_point: int = 0  # of the output, only with fixed_point
    low: int | None = None  # where to clip, inside out_dtype's own range; None: at its end
    high: int | None = None
    # Also store it as uint8: the shift and the zero point for that, and where to clip if not at its ends.
    copy: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.inputs, self.outputs) < 1:
            raise ValueError(f"LinearSpec: sizes are at least 1, got {self}")
        if self.out_dtype not in OUT_DTYPES:
            raise ValueError(f"LinearSpec: out_dtype is {self.out_dtype!r}, not one of {OUT_DTYPES}")
        if self.table and self.out_dtype != "uint8":
            raise ValueError(f"LinearSpec: a table takes uint8, out_dtype is {self.out_dtype!r}")
        if self.out_dtype == "float32" and (self.residual or self.rescaled):
            raise ValueError("LinearSpec: float32 out is acc * scale, without residual, gain or fixed point")
        if self.out_dtype == "float32" and (self.low, self.high) != (None, None):
            raise ValueError("LinearSpec: float32 out is not clipped")
        if self.copy is not None and self.out_dtype != "int16":
            raise ValueError(f"LinearSpec: a copy is made of int16, out_dtype is {self.out_dtype!r}")
        if self.fixed_point and self.gain:
            raise ValueError("LinearSpec: sums have a multiplier or a gain, not both")
        if self.zero_point and not self.fixed_point:
            raise ValueError("LinearSpec: the zero point is in the bias unless fixed_point is set")

    @property
    def rescaled(self) -> bool:
        """Whether sums are multiplied by something before they are shifted."""
        return self.fixed_point or self.gain

    @property
    def clip(self) -> tuple[int, int]:
        """Smallest and largest integer output before the table."""
        low, high = INTEGER_RANGE[self.out_dtype]
        return low if self.low is None else self.low, high if self.high is None else self.high

    @property
    def groups(self) -> int:
        """Groups of 16 outputs, the last one padded."""
        return -(-self.outputs // LANES)


def supports(spec: LinearSpec) -> str | None:
    """Return why this module has no kernel for spec, None when it has one."""
    if spec.inputs % DEPTH:
        return f"{spec.inputs} inputs are not a multiple of {DEPTH}, which one instruction multiplies"
    return None


def buffers(spec: LinearSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of the kernel's parameters, in their order."""
    return {
        "x": ((spec.rows, spec.inputs), "uint8"),
        "weight": ((spec.groups, spec.inputs // DEPTH, LANES, DEPTH), "int8"),
        **epilogue_buffers(spec),
    }


def epilogue_buffers(spec: LinearSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the parameters after the weight."""
    channels = (spec.groups * LANES,)
    found: dict[str, tuple[tuple[int, ...], str]] = {"bias": (channels, "int32")}
    if spec.out_dtype == "float32":
        found["scale"] = (channels, "float32")
    else:
        if spec.fixed_point:
            found["multiplier"] = (channels, "int32")
        if spec.gain:
            found["gain"] = (channels, "int8")
        found["shift"] = (channels, "int8" if spec.gain else "int32")
    if spec.residual:
        found["residual"] = ((spec.rows, spec.outputs), "int16")
    if spec.table:
        found["table"] = ((TABLE_SIZE,), "uint8")
    found["out"] = ((spec.rows, spec.outputs), spec.out_dtype)
    if spec.copy is not None:
        found["copy"] = ((spec.rows, spec.outputs), "uint8")
    return found


def pack_weight(weight: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Return int8 [inputs, outputs] as [groups, inputs/4, 16, 4], zeros in the padded outputs."""
    inputs, outputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -outputs % LANES)))
    tiles = padded.reshape(inputs // DEPTH, DEPTH, -1, LANES)
    return np.ascontiguousarray(tiles.transpose(2, 0, 3, 1))


def unpack_weight(packed: npt.NDArray[np.int8], inputs: int, outputs: int) -> npt.NDArray[np.int8]:
    """Return int8 [inputs, outputs], the inverse of pack_weight."""
    return np.ascontiguousarray(packed.transpose(1, 3, 0, 2).reshape(inputs, -1)[:, :outputs])


def pad_channels(values: npt.NDArray[Any], padded: int) -> npt.NDArray[Any]:
    """Return values [outputs] with the last one repeated up to [padded].

    Not zeros: a fixed-point shift of 0 has no rounding half.
    """
    return np.pad(values, (0, padded - len(values)), mode="edge")
