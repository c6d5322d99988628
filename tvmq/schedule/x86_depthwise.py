"""Integer depthwise convolution for x86: dots over four rows of the kernel at once.

The bytes of four rows of one column are woven together, so that one dot instruction adds four rows of a
column to the sums of a channel; columns that neighbouring pixels share are woven once per tile. The weaving
leaves every fourth channel in a vector; what is stored is packed with saturation and put back in order.
Padding is never written: a tile at the border knows which of its columns lie outside, a line at the border
asks for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.numerics import INTEGER_RANGE
from tvmq.schedule.depthwise_spec import QUARTERS, Chunk, DepthwiseSpec, buffers, chunks, supports
from tvmq.schedule.linear_epilogue import Epilogue, groups_per_step
from tvmq.schedule.linear_spec import DEPTH, LANES
from tvmq.schedule.space import Space
from tvmq.schedule.vectors import Buffer, Expr, lanes, load, shuffle, splat, store
from tvmq.schedule.x86_dots import activations, dot, weights
from tvmq.schedule.x86_intrinsics import lookup
from tvmq.schedule.x86_isa import Isa

TILE_PIXELS = 4
UNITS_PER_THREAD = 4
MIN_PARALLEL_SUMS = 1 << 17  # sums of the kernel, some 10 us
PACK_WORDS = {64: "avx512.packssdw.512", 32: "avx2.packssdw", 16: "sse2.packssdw.128"}
PACK_BYTES = {
    "uint8": {64: "avx512.packuswb.512", 32: "avx2.packuswb", 16: "sse2.packuswb.128"},
    "int8": {64: "avx512.packsswb.512", 32: "avx2.packsswb", 16: "sse2.packsswb.128"},
}
SHUFFLE = {64: "avx512.pshuf.b.512", 32: "avx2.pshuf.b", 16: "ssse3.pshuf.b.128"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseDecision:
    """How the loops are cut."""

    tile: int = TILE_PIXELS  # pixels of a line that share interleaved columns
    bands: int = 1  # parts of an image's lines: units of work


def choose_depthwise(spec: DepthwiseSpec, threads: int) -> DepthwiseDecision:
    """Return tiles of TILE_PIXELS, and bands where there is work for several threads."""
    geometry = spec.geometry
    if threads == 1 or geometry.pixels * geometry.channels < MIN_PARALLEL_SUMS:
        return DepthwiseDecision()
    most = range(1, min(geometry.out_rows, UNITS_PER_THREAD * threads) + 1)
    bands = min(most, key=lambda n: (-(-n * geometry.batch // threads) * -(-geometry.out_rows // n), n))
    return DepthwiseDecision(bands=bands)


def depthwise_space(spec: DepthwiseSpec, threads: int) -> Space:
    """Return what depthwise_prim_func may be told."""
    default = choose_depthwise(spec, threads)
    bands = {1, default.bands, *((threads, 2 * threads) if threads > 1 else ())}
    return Space({"tile": (2, 4, 7, 8), "bands": tuple(sorted(bands))}, asdict(default))


def widest_chunk(isa: Isa) -> int:
    """Return the channels of the widest chunk: bytes of a register."""
    return isa.bits // 8


def depthwise_prim_func(spec: DepthwiseSpec, decision: DepthwiseDecision, isa: Isa) -> tirx.PrimFunc:
    """Return the kernel, its parameters as depthwise_spec.buffers(spec) lists them.

    bias and shift are in the order of pack_channels where spec.short, else in their own. Raises ValueError
    where supports(spec) gives a reason.
    """
    if reason := supports(spec):
        raise ValueError(f"depthwise_prim_func: {reason}; ask supports() first")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec).items()}
        step = groups_per_step(spec.product, isa)
        _Kernel(spec, decision, Epilogue(spec.product, arguments, isa, step)).emit()
    return builder.get()


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the result: where it is, and the bytes of a row of the kernel at a column."""

    row: Expr  # its first pixel
    image: Expr
    first: Expr  # the input row of the kernel's first row
    inside: bool  # all rows of the kernel are inside of the input


class _Kernel:
    """Emits the statements of one kernel; what they share are its fields."""

    def __init__(self, spec: DepthwiseSpec, decision: DepthwiseDecision, epilogue: Epilogue) -> None:
        self.spec, self.epilogue, self.isa = spec, epilogue, epilogue.isa
        self.arguments = epilogue.arguments
        self.pixels = min(decision.tile, spec.geometry.out_columns)
        self.bands = decision.bands
        self.lines = -(-spec.geometry.out_rows // decision.bands)

    def emit(self) -> None:
        g = self.spec.geometry
        units = g.batch * self.bands
        loop = T.parallel if self.bands > 1 else T.serial
        with loop(units) as unit, T.sblock("unit"):
            index = T.axis.spatial(units, unit)
            T.reads(*(_whole(b) for name, b in self.arguments.items() if name not in ("out", "copy")))
            T.writes(*(_whole(b) for name, b in self.arguments.items() if name in ("out", "copy")))
            self.order = {
                chunk.width: _natural(chunk.width) for chunk in chunks(g.channels, widest_chunk(self.isa))
            }
            image = T.bind(index // self.bands)
            first = T.bind(T.min(index % self.bands * self.lines, g.out_rows - self.lines))
            with T.serial(self.lines) as step:
                line = T.bind(first + step)
                row = T.bind((image * g.out_rows + line) * g.out_columns)
                source = T.bind(line * g.stride_rows - g.top)
                reach = (g.kernel_rows - 1) * g.dilation_rows
                with T.If(T.And(source >= 0, source + reach < g.rows)):
                    with T.Then():
                        self._line(_Line(row, image, source, inside=True))
                    with T.Else():
                        self._line(_Line(row, image, source, inside=False))

    def _line(self, line: _Line) -> None:
        channels = self.spec.geometry.channels
        found = list(chunks(channels, widest_chunk(self.isa)))
        widest = [chunk for chunk in found if chunk.width == found[0].width and chunk.start == chunk.place]
        with T.serial(len(widest)) as index:
            self._tiles(line, Chunk(index * found[0].width, found[0].width, index * found[0].width))
        for chunk in found[len(widest) :]:
            self._tiles(line, chunk)

    def _tiles(self, line: _Line, chunk: Chunk) -> None:
        """The first and the last tile know their columns; those between lie inside."""
        columns, pixels = self.spec.geometry.out_columns, self.pixels
        self._tile(line, chunk, 0)
        inner = self._inner()
        if inner:
            first, last = inner
            with T.serial(-(-(last - first) // pixels)) as tile:
                self._tile(line, chunk, T.bind(T.min(first + tile * pixels, last - pixels)))
            for start in (*range(pixels, first, pixels), *range(last, columns - pixels, pixels)):
                self._tile(line, chunk, start)
            if columns > pixels:
                self._tile(line, chunk, columns - pixels)
            return
        for start in range(pixels, columns, pixels):
            self._tile(line, chunk, min(start, columns - pixels))

    def _inner(self) -> tuple[int, int] | None:
        """Return the pixels between the first and the last tile whose columns all lie inside of the input."""
        g, pixels = self.spec.geometry, self.pixels
        reach = (g.kernel_columns - 1) * g.dilation_columns
        first = max(-(-g.left // g.stride_columns), pixels)
        last = min((g.columns - 1 - reach + g.left) // g.stride_columns + 1, g.out_columns - pixels)
        return (first, last) if last - first >= pixels else None

    def _tile(self, line: _Line, chunk: Chunk, start: Any) -> None:
        """Pixels from start on: every column they see in turn, until a pixel has seen all of its own."""
        g = self.spec.geometry
        isa = replace(self.isa, bits=chunk.width * 8)
        known = start if isinstance(start, int) else None
        steps = [column * g.dilation_columns for column in range(g.kernel_columns)]
        sums: dict[int, list[Expr]] = {}
        for column in sorted({i * g.stride_columns + step for i in range(self.pixels) for step in steps}):
            outside = known is not None and not 0 <= known * g.stride_columns + column - g.left < g.columns
            at = start * g.stride_columns + (column - g.left)
            quads = [
                self._interleaved(line, chunk, quad, None if outside else at)
                for quad in range(self.spec.quads)
            ]
            seen = [[activations(isa, vector) for vector in vectors] for vectors in quads]
            for i in range(self.pixels):
                step = column - i * g.stride_columns
                if step not in steps:
                    continue
                for quad, vectors in enumerate(seen):
                    sums[i] = self._added(isa, chunk, sums.get(i), vectors, (quad, steps.index(step)))
                if step == steps[-1]:
                    self._store(isa, line.row + start + i, chunk, sums.pop(i))

    def _interleaved(self, line: _Line, chunk: Chunk, quad: int, column: Any) -> list[Expr]:
        """Return four int32 vectors: the bytes of up to four rows at a column; None: outside of the input."""
        g = self.spec.geometry
        rows = range(quad * DEPTH, min(quad * DEPTH + DEPTH, g.kernel_rows))
        if column is None:
            found = [splat(self.spec.pad_value, f"uint8x{chunk.width}") for _ in rows]
        else:
            found = [self._bytes(line, chunk, line.first + row * g.dilation_rows, column) for row in rows]
        words = [T.bind(T.reinterpret(f"uint16x{chunk.width // 2}", row)) for row in found]
        halves = [_woven(words[:2], half, 8) for half in (0, 1)]
        after = [_woven(words[2:], half, 8) for half in (0, 1)]
        pairs = [[_wide(v) for v in pair if v is not None] for pair in zip(halves, after, strict=True)]
        vectors = [_woven(pairs[vector % 2], vector // 2, 16) for vector in range(QUARTERS)]
        return [T.bind(T.reinterpret(f"int32x{chunk.width // DEPTH}", vector)) for vector in vectors]

    def _bytes(self, line: _Line, chunk: Chunk, row: Expr, column: Any) -> Expr:
        g, x = self.spec.geometry, self.arguments["x"]

        def at(row: Expr) -> Expr:
            return load(x, ((line.image * g.rows + row) * g.columns + column, chunk.start), chunk.width)

        if line.inside:
            return at(row)
        padding = splat(self.spec.pad_value, f"uint8x{chunk.width}")
        return T.if_then_else(T.And(row >= 0, row < g.rows), at(row), padding)

    def _added(
        self, isa: Isa, chunk: Chunk, sums: list[Expr] | None, vectors: Sequence[Any], place: tuple[int, int]
    ) -> list[Expr]:
        """Return the sums of a pixel with one column of four rows added."""
        g, (quad, column) = self.spec.geometry, place
        count = chunk.width // QUARTERS
        per_channel = self.spec.quads * g.kernel_columns * DEPTH
        first = chunk.place * per_channel + (quad * g.kernel_columns + column) * QUARTERS * chunk.width
        if sums is None:
            sums = [self._initial(chunk, vector * count, count) for vector in range(QUARTERS)]
        result = []
        for vector, (total, seen) in enumerate(zip(sums, vectors, strict=True)):
            own = load(self.arguments["weight"], first + vector * chunk.width, chunk.width)
            result.append(T.bind(dot(isa, total, seen, weights(isa, own))))
        return result

    def _initial(self, chunk: Chunk, at: int, count: int) -> Expr:
        if self.spec.short:
            return load(self.arguments["bias"], chunk.place + at, count)
        return splat(0, f"int32x{count}")

    def _store(self, isa: Isa, row: Expr, chunk: Chunk, sums: list[Expr]) -> None:
        if not self.spec.short:
            self._store_groups(row, chunk, sums)
            return
        product, width = self.spec.product, chunk.width
        count = width // QUARTERS
        shifts = [load(self.arguments["shift"], chunk.place + at * count, count) for at in range(QUARTERS)]
        shifted = [T.shift_right(total, shift) for total, shift in zip(sums, shifts, strict=True)]
        words = [_llvm(PACK_WORDS[width], f"int16x{width // 2}", *shifted[i : i + 2]) for i in (0, 2)]
        packed = _llvm(PACK_BYTES[product.out_dtype][width], f"{product.out_dtype}x{width}", *words)
        # The packs work inside lanes of 128 bits: byte 4 * s + i of a lane is channel 4 * i + s.
        packed = _llvm(SHUFFLE[width], f"{product.out_dtype}x{width}", packed, self.order[width])
        for limit, end, clip in zip(
            product.clip, INTEGER_RANGE[product.out_dtype], (T.max, T.min), strict=True
        ):
            if limit != end:
                packed = clip(packed, splat(limit, f"{product.out_dtype}x{width}"))
        if product.table:
            packed = lookup(self.isa, self.arguments["table"], T.bind(packed), width)
        store(self.arguments["out"], (row, chunk.start), packed)

    def _store_groups(self, row: Expr, chunk: Chunk, sums: list[Expr]) -> None:
        """Put the channels in order, 16 by 16, and store them by any epilogue."""
        count, quarter = chunk.width // QUARTERS, LANES // QUARTERS
        orders = [
            [s * count + group * quarter + i for i in range(quarter) for s in range(QUARTERS)]
            for group in range(chunk.width // LANES)
        ]
        groups = [T.bind(shuffle(sums, order)) for order in orders]
        per_step = min(self.epilogue.per_step, len(groups))
        for at in range(0, len(groups), per_step):
            own = groups[at : at + per_step]
            self.epilogue.store(row, chunk.start + at * LANES, own, len(own) * LANES)


def _woven(pair: Sequence[Expr], half: int, bits: int) -> Any:
    """Return the low (0) or high (1) halves, of so many bits, of the lanes of two vectors, in turn.

    One vector alone is woven with zeros, none gives None.
    """
    if not pair:
        return None
    first, *second = pair
    dtype = str(first.ty.dtype)
    ones, by = (1 << bits) - 1, splat(bits, dtype)
    if half == 0:
        low = T.bitwise_and(first, splat(ones, dtype))
        return T.bind(T.bitwise_or(low, T.shift_left(second[0], by)) if second else low)
    high = T.shift_right(first, by)
    return T.bind(
        T.bitwise_or(high, T.bitwise_and(second[0], splat(ones << bits, dtype))) if second else high
    )


def _wide(words: Expr) -> Expr:
    return T.reinterpret(f"uint32x{lanes(words) // 2}", words)


def _natural(width: int) -> Expr:
    """Return the byte order that undoes the packs, as pshufb takes it: int8 [width]."""
    lane = bytes(QUARTERS * (i % QUARTERS) + i // QUARTERS for i in range(LANES))
    words = [const(int.from_bytes(lane[at : at + 4], "little"), "int32") for at in range(0, LANES, 4)]
    return T.bind(T.reinterpret(f"int8x{width}", shuffle(words * (width // LANES), range(width // 4))))


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.{name}", *operands)


def _whole(buffer: Buffer) -> Any:
    return buffer[tuple(slice(0, size) for size in buffer.shape)]
