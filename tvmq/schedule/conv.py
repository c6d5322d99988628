"""uint8 x int8 convolutions: dot products straight from the input, and all that follows them.

Implicit GEMM: no patches are written to memory. A tile of sums, some pixels of one line times some groups of
16 outputs, stays in registers while the kernel's window passes; four bytes of each pixel are broadcast from
where they lie. Where there is padding, each unit of work first copies its lines into scratch with the padding
around them. A last tile that does not fit is moved up: it computes some sums twice, to the same bytes.
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
from tvmq.schedule.conv_tiles import ConvDecision, Extents, fits, line_pixels, step_groups
from tvmq.schedule.dots import activations, dot, packed_dot, packed_sums, signed, unpacked, weights
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import Epilogue
from tvmq.schedule.linear_spec import DEPTH, LANES
from tvmq.schedule.padded_band import padded_band, row_bytes
from tvmq.schedule.vectors import (
    Buffer,
    Expr,
    lane_of,
    load,
    prefetch,
    shuffle,
    splat,
    store,
    vector_type,
    whole,
)

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


class _Kernel:
    """Emits the statements of one kernel; what they share are its fields."""

    def __init__(self, spec: ConvSpec, decision: ConvDecision, epilogue: Epilogue) -> None:
        self.spec, self.decision, self.epilogue, self.isa = spec, decision, epilogue, epilogue.isa
        self.x, self.weight = epilogue.arguments["x"], epilogue.arguments["weight"]
        self.pixels, self.columns = decision.pixel_tile, decision.column_tile
        self.extents = Extents.of(spec, self.pixels, self.columns)
        self.band_lines = -(-self.extents.lines // decision.bands)
        self.part_columns = -(-self.extents.columns // decision.parts)
        self.lanes = LANES // self.isa.parts
        self.places = [(j, at) for j in range(self.columns) for at in range(0, LANES, self.lanes)]
        self.multiply = packed_dot if spec.packed else dot
        self.stride = spec.geometry.stride_columns * spec.geometry.channels
        self.held, self.flipped = (LANES,), self.isa.neon  # a buffer of sums; whether 128 is taken off pixels
        # NEON multiplies by a lane of a register, which so many steps fill.
        self.block = max(bit_planes.block_steps(spec.weight_bits), FOURS if self.isa.neon else 1)
        self.line_bytes = row_bytes(spec.geometry)  # without padding, if the input is read where it lies

    def emit(self) -> None:
        units = self.extents.images * self.decision.bands * self.decision.parts
        loop = T.parallel if self.decision.parallel else T.serial
        with loop(units) as unit, T.sblock("unit"):
            index = T.axis.spatial(units, unit)
            buffers = self.epilogue.arguments
            written = {"out", "copy"}
            T.reads(*(whole(b) for name, b in buffers.items() if name not in written))
            T.writes(*(whole(b) for name, b in buffers.items() if name in written))
            self.acc = [T.sblock_alloc_buffer(self.held, "int32") for _ in range(self.pixels * self.columns)]
            part, band = index % self.decision.parts, index // self.decision.parts
            self.image = T.bind(band // self.decision.bands)
            first = band % self.decision.bands * self.band_lines
            self.first_line = T.bind(T.min(first, self.extents.lines - self.band_lines))
            self.source = self._direct() if self.spec.direct else self._padded()
            columns = self.extents.columns
            self.first_column = T.bind(T.min(part * self.part_columns, columns - self.part_columns))
            order = (self.part_columns, self.band_lines, self.extents.tiles)
            if self.decision.outer == "columns":
                with T.grid(*order) as (column, line, tile):
                    self._tile(column, line, tile)
            else:
                with T.grid(*order[1:], order[0]) as (line, tile, column):
                    self._tile(column, line, tile)

    def _direct(self) -> Buffer:
        geometry = self.spec.geometry
        self.origin = self.image * (geometry.rows * self.line_bytes)
        self.origin += self.first_line * (0 if self.spec.flat else geometry.stride_rows * self.line_bytes)
        self.origin = T.bind(self.origin)
        return T.decl_buffer((geometry.batch * geometry.rows * self.line_bytes,), "uint8", data=self.x.data)

    def _padded(self) -> Buffer:
        spec = self.spec
        self.origin = const(0, "int32")
        return padded_band(
            spec.geometry,
            self.x,
            spec.pad_value,
            self.image,
            self.first_line,
            self.band_lines,
            flipped=self.flipped,
        )

    def _tile(self, column: Expr, line: Expr, tile: Expr) -> None:
        """One register tile: its sums, then what is stored of them."""
        spec, g = self.spec, self.spec.geometry
        groups = spec.product.groups
        group = T.bind(T.min((self.first_column + column) * self.columns, groups - self.columns))
        if spec.flat:
            pixel = T.bind(T.min((self.first_line + line) * self.pixels, self.extents.width - self.pixels))
            base, row = T.bind(pixel * g.channels), pixel
        else:
            pixel = T.bind(T.min(tile * self.pixels, self.extents.width - self.pixels))
            start = line * (g.stride_rows * self.line_bytes) + pixel * (g.stride_columns * g.channels)
            base = T.bind(self.origin + start)
            row = (self.image * g.out_rows + self.first_line + line) * g.out_columns + pixel
        if g.groups > 1:
            base = T.bind(base + group // spec.lanes_per_group * g.group_inputs)
        self._start(group)
        self._next_groups(group, line * self.extents.tiles + tile)
        block = self.block
        whole, rest = divmod(spec.steps, block)
        with T.serial(g.kernel_rows) as down, T.serial(spec.taps) as across:
            window = down * (g.dilation_rows * self.line_bytes) + across * (g.dilation_columns * g.channels)
            segment, offset = T.bind(down * spec.taps + across), T.bind(base + window)
            if whole:
                with T.serial(whole) as index:
                    self._block(group, segment, index, block, offset)
            if rest:
                self._block(group, segment, const(whole, "int32"), rest, offset)
        self._store(row, group)

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

    def _next_groups(self, group: Expr, tile: Expr) -> None:
        """Choose the groups of the next column tile whose weights this tile of pixels asks for."""
        # Where few tiles of pixels pass, each asks for more, so that all of them are asked for.
        self.ahead = []
        share = -(-self.columns // (self.band_lines * self.extents.tiles)) if self.decision.prefetch else 0
        for number in range(share):
            which = T.min(tile * share + number, self.columns - 1)
            last = self.spec.product.groups - 1
            self.ahead.append(T.bind(T.min(group + self.columns + which, last)))

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
