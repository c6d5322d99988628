"""float32 convolutions: the layers that a plan leaves in float.

    out = conv2d(x, weight) (+ bias) (then within limits)

Rows are pixels: x is [batch * rows * columns, channels], out [pixels, outputs]. Sums run over the window's
rows, its columns and their inputs, in this order, one multiply-add each, which is fused where the CPU has it;
so a result depends on neither tiles nor threads. The loops are those of `window_kernel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.schedule.conv_tiles import ConvDecision, line_pixels
from tvmq.schedule.float_conv_spec import FLOAT, FloatConvSpec, buffers
from tvmq.schedule.float_conv_tiles import fits
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import LANES
from tvmq.schedule.vectors import Buffer, Expr, load, prefetch, shuffle, splat, store
from tvmq.schedule.window_kernel import WindowKernel


def float_conv_prim_func(spec: FloatConvSpec, decision: ConvDecision, isa: Isa) -> tirx.PrimFunc:
    """Return the kernel, its parameters as float_conv_spec.buffers(spec) lists them."""
    if decision.pixel_tile > line_pixels(spec) or not fits(spec, decision.column_tile):
        tile = f"{decision.pixel_tile} x {decision.column_tile}"
        raise ValueError(
            f"float_conv_prim_func: a tile of {tile} is more than a line and a group of {spec} have"
        )
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("float_conv2d")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec).items()}
        _Kernel(spec, decision, arguments, isa).emit()
    return builder.get()


class _Kernel(WindowKernel):
    """Inputs times vectors of 16 weights, in registers of the instruction set."""

    def __init__(
        self, spec: FloatConvSpec, decision: ConvDecision, arguments: Mapping[str, Buffer], isa: Isa
    ) -> None:
        super().__init__(spec, decision, arguments, sums=FLOAT)
        self.spec, self.lanes, self.unrolled = spec, LANES // isa.parts, spec.mixed
        self.places = [(j, at) for j in range(self.columns) for at in range(0, LANES, self.lanes)]

    def _first_channel(self, group: Expr) -> Expr:
        inputs = self.spec.geometry.group_inputs
        if self.spec.mixed:
            return group * (self.spec.joined * inputs)
        return group // self.spec.vectors_per_group * inputs

    def _start(self, group: Expr) -> None:
        for acc in self.acc:
            for at in range(0, LANES, self.lanes):
                store(acc, at, splat(0, f"{FLOAT}x{self.lanes}"))

    def _segment(self, group: Expr, segment: Expr, offset: Expr) -> None:
        if self.spec.mixed:
            self._ordered(group, segment, offset)
            return
        with T.serial(self.spec.steps) as step:
            for ahead in self.ahead:
                prefetch(self.weight, (ahead, segment, step, 0), level=2)
            place = offset + step
            if len(self.places) <= self.pixels:  # the fewer ones wait in registers
                own = [self._weight(group, segment, step, j, at) for j, at in self.places]
                for i in range(self.pixels):
                    values = self._spread(place, i)
                    for (j, at), weight in zip(self.places, own, strict=True):
                        self._add(i, j, at, values, weight)
                return
            seen = [self._spread(place, i) for i in range(self.pixels)]
            for j, at in self.places:
                weight = self._weight(group, segment, step, j, at)
                for i, values in enumerate(seen):
                    self._add(i, j, at, values, weight)

    def _spread(self, offset: Expr, pixel: int) -> Expr:
        """Return an input of a pixel in every lane."""
        return T.bind(T.broadcast(T.bind(self.source[offset + pixel * self.stride]), self.lanes))

    def _weight(self, group: Expr, segment: Expr, step: Expr, column: int, at: int) -> Expr:
        return T.bind(load(self.weight, (group + column, segment, step, at), self.lanes))

    def _ordered(self, group: Expr, segment: Expr, offset: Expr) -> None:
        """The steps of a segment, all inputs of its vectors read at once."""
        spec = self.spec
        width = spec.joined * spec.geometry.group_inputs
        for j in range(self.columns):
            seen = [
                T.bind(load(self.source, offset + (i * self.stride + j * width), spec.span))
                for i in range(self.pixels)
            ]
            for step in range(spec.steps):
                order = spec.order(step)
                for at in range(0, LANES, self.lanes):
                    weight = self._weight(group, segment, const(step, "int32"), j, at)
                    own = order[at : at + self.lanes]
                    for i in range(self.pixels):
                        self._add(i, j, at, _taken(seen[i], spec.span, own), weight)

    def _add(self, pixel: int, column: int, at: int, values: Expr, weight: Expr) -> None:
        acc = self.acc[pixel * self.columns + column]
        store(acc, at, load(acc, at, self.lanes) + values * weight)

    def _store(self, row: Expr, group: Expr) -> None:
        for j in range(self.columns):
            vector = T.bind(group + j)
            first = T.bind(self._first_output(vector))
            for i in range(self.pixels):
                values = T.bind(self._finished(load(self.acc[i * self.columns + j], 0, LANES), first))
                self._put(row + i, first, vector, values)

    def _first_output(self, vector: Expr) -> Expr:
        spec = self.spec
        if spec.mixed:
            return vector * (spec.joined * spec.group_outputs)
        group, part = vector // spec.vectors_per_group, vector % spec.vectors_per_group
        return group * spec.group_outputs + part * LANES

    def _finished(self, values: Expr, first: Expr) -> Expr:
        spec = self.spec
        if spec.bias:
            values = values + load(self.arguments["bias"], first, LANES)
        if spec.high is not None:
            values = T.min(values, splat(spec.high, f"{FLOAT}x{LANES}"))
        if spec.low is not None:
            values = T.max(values, splat(spec.low, f"{FLOAT}x{LANES}"))
        return values

    def _put(self, row: Expr, first: Expr, vector: Expr, values: Expr) -> None:
        """Store the lanes of a vector that are outputs: fewer in the last one of a group, or of all."""
        spec, out = self.spec, self.arguments["out"]
        period = spec.column_groups if spec.mixed else spec.vectors_per_group
        usual, last = (len(spec.outputs_of(each)) for each in (0, period - 1))
        if usual == last:
            _store_first(out, row, first, values, usual)
            return
        with T.If(vector % period == period - 1):
            with T.Then():
                _store_first(out, row, first, values, last)
            with T.Else():
                _store_first(out, row, first, values, usual)


def _taken(values: Expr, count: int, order: list[int]) -> Any:
    """Return the lanes of count values that order names."""
    if order == list(range(count)):
        return values
    copies = ceil(len(order) / count)  # a shuffle of TVM gives no more lanes than it takes
    return shuffle([values] * copies, order)


def _store_first(out: Buffer, row: Expr, first: Expr, values: Expr, count: int) -> None:
    """Store the first count lanes, in pieces whose sizes are powers of two."""
    at, size = 0, LANES
    while at < count:
        if at + size <= count:
            whole = size == LANES
            store(out, (row, first + at), values if whole else shuffle([values], range(at, at + size)))
            at += size
        size //= 2
