"""Integer depthwise convolution as one kernel: plain TIR vectors along the channels, for every LLVM target.

The columns of an output row are walked inside its groups of channels, so that the weights of a group stay in
registers. Products are int32 in the source; uint8 times int8 fits 16 bits, and LLVM multiplies such as that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.schedule.vectors import Buffer, Expr, load, repeat, splat, store, vector_type

MAX_LANES = 16
MIN_LANES = 4
MAX_TAPS = 121  # all taps of a pixel are one expression


@dataclass(frozen=True)
class DepthwiseSpec:
    """The sizes and constants of composites.depthwise; data is padded."""

    data: tuple[int, int, int, int]  # B, H, W, C
    kernel: tuple[int, int]
    strides: tuple[int, int]
    in_dtype: str
    out_dtype: str
    low: int
    high: int

    @property
    def lanes(self) -> int:
        """Return how many channels are computed at once."""
        return math.gcd(self.data[3], MAX_LANES)

    @property
    def size(self) -> tuple[int, int]:
        """Return the rows and columns of the result."""
        rows, columns = (
            (length - kernel) // stride + 1
            for length, kernel, stride in zip(self.data[1:3], self.kernel, self.strides, strict=True)
        )
        return rows, columns


def supports(spec: DepthwiseSpec) -> str | None:
    """Return why depthwise_prim_func cannot build spec, or None when it can."""
    if spec.lanes < MIN_LANES:
        return f"{spec.data[3]} channels make no vectors"
    if math.prod(spec.kernel) > MAX_TAPS:
        return f"{math.prod(spec.kernel)} taps are over {MAX_TAPS}"
    return None


def depthwise_prim_func(spec: DepthwiseSpec) -> tirx.PrimFunc:
    """Return the kernel (x, weight, bias, shift, out) of spec.

    x in_dtype [B, H, W, C]; weight int8 [taps, C]; bias, shift int32 [C]; out out_dtype [B * rows * columns,
    C].
    Raises ValueError where supports(spec) gives a reason.
    """
    reason = supports(spec)
    if reason is not None:
        raise ValueError(f"depthwise kernel: {reason}; ask supports(spec) first")
    (batch, _, _, channels), (rows, columns) = spec.data, spec.size
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        x = T.arg("x", T.buffer(spec.data, spec.in_dtype))
        weight = T.arg("weight", T.buffer((math.prod(spec.kernel), channels), "int8"))
        bias = T.arg("bias", T.buffer((channels,), "int32"))
        shift = T.arg("shift", T.buffer((channels,), "int32"))
        out = T.arg("out", T.buffer((batch * rows * columns, channels), spec.out_dtype))
        with T.parallel(batch * rows) as line, T.sblock("line"):
            y = T.axis.spatial(batch * rows, line)
            first = y // rows, y % rows * spec.strides[0]
            T.reads(
                x[first[0], first[1] : first[1] + spec.kernel[0], 0 : spec.data[2], 0:channels],
                *(buffer[tuple(slice(0, size) for size in buffer.shape)] for buffer in (weight, bias, shift)),
            )
            T.writes(out[y * columns : y * columns + columns, 0:channels])
            with T.serial(channels // spec.lanes) as group, T.serial(columns) as column:
                channel = group * spec.lanes
                pixel = (*first, column * spec.strides[1], channel)
                total = load(bias, channel, spec.lanes) + _products(spec, x, weight, pixel)
                store(
                    out,
                    (y * columns + column, channel),
                    _clipped(spec, total, load(shift, channel, spec.lanes)),
                )
    return builder.get()


def _products(spec: DepthwiseSpec, x: Buffer, weight: Buffer, pixel: tuple[Expr, ...]) -> Expr:
    wide = vector_type("int32", spec.lanes)
    image, row, column, channel = pixel
    total = repeat(tirx.const(0, "int32"), spec.lanes)
    for tap in range(math.prod(spec.kernel)):
        down, across = divmod(tap, spec.kernel[1])
        seen = load(x, (image, row + down, column + across, channel), spec.lanes)
        total = total + T.cast(seen, wide) * T.cast(load(weight, (tap, channel), spec.lanes), wide)
    return total


def _clipped(spec: DepthwiseSpec, total: Expr, shift: Expr) -> Expr:
    wide = vector_type("int32", spec.lanes)
    y = T.max(T.min(T.shift_right(total, shift), splat(spec.high, wide)), splat(spec.low, wide))
    return T.cast(y, vector_type(spec.out_dtype, spec.lanes))
