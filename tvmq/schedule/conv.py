"""uint8 x int8 convolutions: dot products straight from the input, and all that follows them.

The loops are those of `window_kernel`; four bytes of each pixel are broadcast from where they lie.
"""

from __future__ import annotations

import itertools
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq import bit_planes
from tvmq.bit_planes import Plane
from tvmq.schedule.arm_intrinsics import multiply_pairs
from tvmq.schedule.conv_spec import ConvSpec, buffers, in_pairs, supports
from tvmq.schedule.conv_tiles import ConvDecision, fits, line_pixels, step_groups
from tvmq.schedule.dots import activations, dot, packed_dot, packed_sums, signed, unpacked, weights
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import Epilogue
from tvmq.schedule.linear_spec import DEPTH, LANES
from tvmq.schedule.vectors import (
    Expr,
    lane_of,
    load,
    prefetch,
    shuffle,
    splat,
    store,
    vector_type,
)
from tvmq.schedule.window_kernel import WindowKernel

FOURS = 4  # steps whose bytes fill a register of 128 bits


def conv_prim_func(spec: ConvSpec, decision: ConvDecision, isa: Isa) -> tirx.PrimFunc:
    """Return the kernel, its parameters as conv_spec.buffers(spec) lists them.

    Raises ValueError where supports(spec) gives a reason.
    """
    if reason := supports(spec):
        raise ValueError(f"conv_prim_func: {reason}; ask supports() first")
    if decision.pixel_tile > line_pixels(spec) or not fits(spec, decision.column_tile):
        tile = f"{decision.pixel_tile} x {decision.column_tile}"
        raise ValueError(f"conv_prim_func: a tile of {tile} is more than a line and a group of {spec} have")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("conv2d")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec, isa).items()}
        step = step_groups(spec, isa, decision.column_tile)
        kernel = _PairKernel if in_pairs(spec, isa) else _Kernel
        kernel(spec, decision, Epilogue(spec.product, arguments, isa, step)).emit()
    return builder.get()


class _Kernel(WindowKernel):
    """Dots of four bytes of each pixel, which are broadcast."""

    def __init__(self, spec: ConvSpec, decision: ConvDecision, epilogue: Epilogue) -> None:
        super().__init__(spec, decision, epilogue.arguments, sums="int32")
        self.spec, self.epilogue, self.isa = spec, epilogue, epilogue.isa
        self.lanes = LANES // self.isa.parts
        self.places = [(j, at) for j in range(self.columns) for at in range(0, LANES, self.lanes)]
        self.multiply = packed_dot if spec.packed else dot
        self.pad_value, self.flipped = spec.pad_value, self.isa.neon  # then 128 is taken off pixels
        # NEON multiplies by a lane of a register, which so many steps fill.
        self.block = max(bit_planes.block_steps(spec.weight_bits), FOURS if self.isa.neon else 1)

    def _first_channel(self, group: Expr) -> Expr:
        return group // self.spec.lanes_per_group * self.spec.geometry.group_inputs

    def _segment(self, group: Expr, segment: Expr, offset: Expr) -> None:
        whole, rest = divmod(self.spec.steps, self.block)
        if whole:
            with T.serial(whole) as index:
                self._block(group, segment, index, self.block, offset)
        if rest:
            self._block(group, segment, const(whole, "int32"), rest, offset)

    def _start(self, group: Expr) -> None:
        """Set the sums of a tile to zero, or to what makes up for the 128 that its pixels lack."""
        lanes = self.lanes
        for j, at in self.places:
            start = splat(0, f"int32x{lanes}")
            if self.isa.neon:
                place = (group + j, 0, self.spec.registers, at * DEPTH)
                start = T.bind(T.reinterpret(f"int32x{lanes}", load(self.weight, place, lanes * DEPTH)))
            for i in range(self.pixels):
                store(self.acc[i * self.columns + j], at, start)

    def _block(self, group: Expr, segment: Expr, index: Expr, steps: int, offset: Expr) -> None:
        """The steps of a block, after which every plane of the weights begins a new byte."""
        bits, block = self.spec.weight_bits, self.block
        for step in range(steps):
            if self.isa.neon and step % FOURS == 0:
                self.seen = self._fours(offset + (index * block + step) * DEPTH, min(steps - step, FOURS))
            vectors = []
            for plane, first, vector, place in bit_planes.places(bits, self.spec.steps, step):
                at = first + index * (block // plane.per_byte) + vector
                vectors.append((plane, place, at))
                for ahead in self.ahead if place == 0 else ():
                    prefetch(self.weight, (ahead, segment, at, 0), level=2)
            words = self._words(offset + (index * block + step) * DEPTH, step)
            for j, at in self.places:
                weight = self._weights(group + j, segment, at, vectors)
                for i in range(self.pixels):
                    acc = self.acc[i * self.columns + j]
                    store(acc, at, self.multiply(self.isa, load(acc, at, self.lanes), words[i], weight))

    def _weights(self, group: Expr, segment: Expr, part: int, vectors: list[tuple[Plane, int, Expr]]) -> Any:
        """Return the weights of one step for a register of sums."""
        size = LANES * DEPTH // self.isa.parts
        stored = [
            (plane, place, load(self.weight, (group, segment, at, part * DEPTH), size))
            for plane, place, at in vectors
        ]
        if self.spec.packed:
            return unpacked(self.isa, self.spec.weight_bits, stored)
        return weights(self.isa, stored[0][2])

    def _fours(self, offset: Expr, steps: int) -> list[Expr]:
        """Return the bytes of so many steps of every pixel, int32 [steps]; a product names a lane of it."""
        found = []
        for i in range(self.pixels):
            values = load(self.source, offset + i * self.stride, steps * DEPTH)
            values = signed(values) if self.spec.direct else values  # else they are already
            found.append(T.bind(T.reinterpret(vector_type("int32", steps), values)))
        return found

    def _words(self, offset: Expr, step: int) -> list[Any]:
        """Return four bytes of every pixel, in all places of a register, as `multiply` takes them."""
        found = []
        for i in range(self.pixels):
            if self.isa.neon:
                words = lane_of(self.seen[i], step % FOURS, self.lanes)
            else:
                four = T.reinterpret("int32", load(self.source, offset + i * self.stride, DEPTH))
                words = T.broadcast(four, self.lanes)
            found.append(T.bind(words) if self.spec.packed else activations(self.isa, words))
        return found

    def _store(self, row: Expr, group: Expr) -> None:
        per_step = self.epilogue.per_step
        step = T.bind(group // per_step)
        steps = self.columns // per_step
        for i in range(self.pixels):
            for j in range(steps):
                sums = [self._sums(i, j * per_step + k) for k in range(per_step)]
                if self.spec.packed:
                    sums = [packed_sums(self.isa, self.spec.weight_bits, total) for total in sums]
                self.epilogue.store_step(row + i, step + j, sums, may_be_last=j == steps - 1)

    def _sums(self, pixel: int, column: int) -> Expr:
        return load(self.acc[pixel * self.columns + column], 0, LANES)


class _PairKernel(_Kernel):
    """Multiplies pixels two by two: a register of sums is two pixels by two outputs."""

    def __init__(self, spec: ConvSpec, decision: ConvDecision, epilogue: Epilogue) -> None:
        super().__init__(spec, decision, epilogue)
        self.held, self.flipped = (2 * LANES,), False
        self.firsts = range(0, self.pixels, 2)

    def _start(self, group: Expr) -> None:
        for i, j in itertools.product(self.firsts, range(self.columns)):
            for at in range(0, 2 * LANES, self.lanes):
                store(self.acc[i * self.columns + j], at, splat(0, f"int32x{self.lanes}"))

    def _block(self, group: Expr, segment: Expr, index: Expr, steps: int, offset: Expr) -> None:
        for step in range(0, steps, 2):
            first = index * self.block + step
            for ahead in self.ahead:
                for vector in (0, 1):
                    prefetch(self.weight, (ahead, segment, first + vector, 0), level=2)
            pixels = self._pairs(offset + first * DEPTH, min(steps - step, 2))
            for j, at in itertools.product(range(self.columns), range(0, 2 * LANES, self.lanes)):
                byte = at * DEPTH
                place = (group + j, segment, first + byte // (LANES * DEPTH), byte % (LANES * DEPTH))
                weight = T.bind(load(self.weight, place, self.lanes * DEPTH))
                for i, seen in zip(self.firsts, pixels, strict=True):
                    acc = self.acc[i * self.columns + j]
                    store(acc, at, multiply_pairs(load(acc, at, self.lanes), seen, weight))

    def _pairs(self, offset: Expr, steps: int) -> list[Expr]:
        """Return 8 bytes of every two pixels; of a single step 4 are zeros, as their weights are."""
        found = []
        for i in self.firsts:
            places = [offset + at * self.stride for at in (i, min(i + 1, self.pixels - 1))]
            if steps == 2:
                rows = [T.reinterpret("int64", load(self.source, place, 2 * DEPTH)) for place in places]
            else:
                words = [T.reinterpret("uint32", load(self.source, place, DEPTH)) for place in places]
                rows = [T.reinterpret("int64", T.cast(word, "uint64")) for word in words]
            found.append(T.bind(T.reinterpret("uint8x16", shuffle(rows, (0, 1)))))
        return found

    def _sums(self, pixel: int, column: int) -> Expr:
        acc = self.acc[(pixel - pixel % 2) * self.columns + column]
        both = load(acc, 0, 2 * LANES)
        return shuffle(
            [both], [4 * pair + 2 * (pixel % 2) + at for pair in range(LANES // 2) for at in (0, 1)]
        )
