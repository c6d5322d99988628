"""Pooling of stored integers as one kernel: plain TIR vectors along the channels, for every LLVM target.

The window of a pixel is walked where it lies inside of the image, so nothing is padded. A mean sums int32 and
subtracts the zero point once per pixel it saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import MAX, Pooling
from tvmq.schedule.vectors import Buffer, Expr, load, repeat, splat, store, vector_type

WIDEST = {MAX: 64}  # lanes; sums take 16 of them to a register
WIDEST_SUMS = 32
MIN_PARALLEL_VALUES = 1 << 19  # read by all windows, some 20 us


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The sizes and constants of pool_composite.pool."""

    geometry: ConvGeometry
    pooling: Pooling


def pool_prim_func(spec: PoolSpec, threads: int = 1) -> tirx.PrimFunc:
    """Return the kernel (x, out) of spec; threads: how many will run it."""
    g, pooling = spec.geometry, spec.pooling
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("pool")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        x = T.arg("x", T.buffer((g.batch * g.rows * g.columns, g.channels), pooling.in_dtype))
        out = T.arg("out", T.buffer((g.pixels, g.channels), pooling.out_dtype))
        lines = g.batch * g.out_rows
        values = g.pixels * g.channels * g.kernel_rows * g.kernel_columns
        loop = T.parallel if threads > 1 and values >= MIN_PARALLEL_VALUES else T.serial
        with loop(lines) as unit, T.sblock("line"):
            line = T.axis.spatial(lines, unit)
            T.reads(x[0 : g.batch * g.rows * g.columns, 0 : g.channels])
            T.writes(out[line * g.out_columns : line * g.out_columns + g.out_columns, 0 : g.channels])
            rows = _Span.of(line % g.out_rows, g.stride_rows, g.top, g.kernel_rows, g.rows)
            first = T.bind((line // g.out_rows * g.rows + rows.first) * g.columns)
            with T.serial(g.out_columns) as column:
                columns = _Span.of(column, g.stride_columns, g.left, g.kernel_columns, g.columns)
                window = _Window(spec, x, rows, columns, T.bind(first + columns.first))
                place = T.bind(line * g.out_columns + column)
                for start, lanes, repeats in _pieces(g.channels, WIDEST.get(pooling.operation, WIDEST_SUMS)):
                    with T.serial(repeats) as piece:
                        channel = start + piece * lanes
                        store(out, (place, channel), window.pooled(channel, lanes))
    return builder.get()


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows or columns of a window that lie inside of the image: none where it is all in the padding."""

    first: Expr
    count: Expr

    @classmethod
    def of(cls, index: Expr, stride: int, before: int, length: int, size: int) -> _Span:
        start = index * stride - before
        first = T.bind(T.max(start, 0))
        return cls(first, T.bind(T.max(T.min(start + length, size) - first, 0)))


@dataclass(frozen=True, slots=True)
class _Window:
    """One window, from the pixel `first` on."""

    spec: PoolSpec
    x: Buffer
    rows: _Span
    columns: _Span
    first: Expr

    def pooled(self, channel: Expr, lanes: int) -> Expr:
        """Emit the walk over the window; return what is stored of these channels."""
        pooling = self.spec.pooling
        dtype = pooling.in_dtype if pooling.operation == MAX else "int32"
        wide, start = vector_type(dtype, lanes), INTEGER_RANGE[dtype][0] if pooling.operation == MAX else 0
        total = T.sblock_alloc_buffer((lanes,), dtype)
        store(total, 0, splat(start, wide))
        with T.serial(self.rows.count) as row, T.serial(self.columns.count) as column:
            seen = load(self.x, (self.first + row * self.spec.geometry.columns + column, channel), lanes)
            before = load(total, 0, lanes)
            store(total, 0, T.max(before, seen) if pooling.operation == MAX else before + T.cast(seen, wide))
        if pooling.operation == MAX:
            return load(total, 0, lanes)
        offset = repeat(self.rows.count * self.columns.count * pooling.zero_point, lanes)
        return _requantized(load(total, 0, lanes) - offset, lanes, pooling)


def _requantized(sums: Expr, lanes: int, pooling: Pooling) -> Expr:
    wide = vector_type("int64", lanes)
    half = splat(1 << (pooling.shift - 1), wide)
    product = T.cast(sums, wide) * splat(pooling.multiplier, wide) + half
    value = T.shift_right(product, splat(pooling.shift, wide)) + splat(pooling.out_zero_point, wide)
    low, high = (splat(limit, wide) for limit in pooling.clip)
    return T.cast(T.max(T.min(value, high), low), vector_type(pooling.out_dtype, lanes))


def _pieces(channels: int, widest: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first channel, lanes, how often): the widest as often as they fit, then ever narrower ones."""
    start, lanes = 0, widest
    while start < channels:
        repeats = (channels - start) // lanes
        if repeats:
            yield start, lanes, repeats
        start, lanes = start + repeats * lanes, lanes // 2
