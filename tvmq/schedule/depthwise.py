"""Integer depthwise convolution: dots over four rows of the kernel at once.

The bytes of four rows of one column are woven together, so that one dot instruction adds four rows of a
column to the sums of a channel; columns that neighbouring pixels share are woven once per tile. The weaving
leaves every fourth channel in a vector; what is stored is packed with saturation and put back in order.
Each unit of work copies its lines into scratch with the padding around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.schedule.byte_vectors import lookup, pack_bytes, pack_words, permute
from tvmq.schedule.depthwise_spec import (
    MISSING,
    QUARTERS,
    Chunk,
    DepthwiseSpec,
    buffers,
    chunks,
    packed_channels,
    supports,
)
from tvmq.schedule.dots import activations, dot, weights
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import Epilogue, groups_per_step
from tvmq.schedule.linear_spec import DEPTH, LANES
from tvmq.schedule.padded_band import band_rows, padded_band, row_size
from tvmq.schedule.space import Space
from tvmq.schedule.vectors import Expr, lanes, limited, load, shuffle, splat, store, whole

TILES = (4, 5, 6, 7, 8, 14)  # pixels
NARROW_TILES = (4, 5)  # in registers of 128 bits, which the sums of more do not fit
BAND_BYTES = 1 << 18  # of padded lines; more leave the cache before they are read
MIN_PARALLEL_SUMS = 1 << 17  # sums of the kernel, some 10 us


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseDecision:
    """How the loops are cut."""

    tile: int  # pixels of a line that share woven columns
    bands: int = 1  # parts of an image's lines: units of work
    parallel: bool = False


def choose_depthwise(spec: DepthwiseSpec, isa: Isa, threads: int) -> DepthwiseDecision:
    """Return the tile that computes fewest pixels twice, and bands that stay in the cache and share out."""
    g = spec.geometry
    tile = min(NARROW_TILES if isa.neon else TILES, key=lambda n: (-(-g.out_columns // n) * n, -n))
    parallel = threads > 1 and g.pixels * g.channels >= MIN_PARALLEL_SUMS

    def cost(bands: int) -> tuple[bool, int, int]:
        rows = band_rows(g, -(-g.out_rows // bands))
        rounds = -(-bands * g.batch // threads) if parallel else bands * g.batch
        return rows * row_size(g) > BAND_BYTES, rounds * rows, bands

    bands = min(range(1, g.out_rows + 1), key=cost)
    return DepthwiseDecision(tile=tile, bands=bands, parallel=parallel and g.batch * bands > 1)


def depthwise_space(spec: DepthwiseSpec, isa: Isa, threads: int) -> Space:
    """Return what depthwise_prim_func may be told."""
    default = choose_depthwise(spec, isa, threads)
    bands = sorted({1, default.bands, min(2 * default.bands, spec.geometry.out_rows)})
    parallel = (False, True) if threads > 1 else (False,)
    return Space({"tile": (2, *TILES), "bands": tuple(bands), "parallel": parallel}, asdict(default))


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
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec, isa).items()}
        step = groups_per_step(spec.product, isa)
        _Kernel(spec, decision, Epilogue(spec.product, arguments, isa, step)).emit()
    return builder.get()


class _Kernel:
    """Emits the statements of one kernel; what they share are its fields."""

    def __init__(self, spec: DepthwiseSpec, decision: DepthwiseDecision, epilogue: Epilogue) -> None:
        self.spec, self.decision, self.epilogue, self.isa = spec, decision, epilogue, epilogue.isa
        self.arguments = epilogue.arguments
        self.pixels = min(decision.tile, spec.geometry.out_columns)
        self.lines = -(-spec.geometry.out_rows // decision.bands)

    def emit(self) -> None:
        g, bands = self.spec.geometry, self.decision.bands
        units = g.batch * bands
        loop = T.parallel if self.decision.parallel else T.serial
        with loop(units) as unit, T.sblock("unit"):
            index = T.axis.spatial(units, unit)
            T.reads(*(whole(b) for name, b in self.arguments.items() if name not in ("out", "copy")))
            T.writes(*(whole(b) for name, b in self.arguments.items() if name in ("out", "copy")))
            found = list(chunks(g.channels, widest_chunk(self.isa)))
            self.order = {width: _natural(width) for width in {chunk.width for chunk in found}}
            image = T.bind(index // bands)
            first = T.bind(T.min(index % bands * self.lines, g.out_rows - self.lines))
            self.band = padded_band(
                g,
                self.arguments["x"],
                self.spec.pad_value,
                image,
                first,
                self.lines,
                flipped=self.isa.neon,
            )
            tiles = -(-g.out_columns // self.pixels)
            with T.serial(self.lines) as line:
                row = T.bind((image * g.out_rows + first + line) * g.out_columns)
                source = T.bind(line * (g.stride_rows * row_size(g)))
                for chunk, count in _counted(found):
                    with T.serial(count) as piece, T.serial(tiles) as tile:
                        # A last tile that does not fit is moved up: it computes some pixels twice.
                        start = T.bind(T.min(tile * self.pixels, g.out_columns - self.pixels))
                        own = Chunk(
                            chunk.start + piece * chunk.width, chunk.width, chunk.place + piece * chunk.width
                        )
                        self._tile(row + start, source + start * (g.stride_columns * g.channels), own)

    def _tile(self, row: Expr, source: Expr, chunk: Chunk) -> None:
        """Pixels from row on: every column they see in turn, until a pixel has seen all of its own."""
        g = self.spec.geometry
        isa = replace(self.isa, bits=chunk.width * 8)
        steps = [column * g.dilation_columns for column in range(g.kernel_columns)]
        sums: dict[int, list[Expr]] = {}
        for column in sorted({i * g.stride_columns + step for i in range(self.pixels) for step in steps}):
            at = source + column * g.channels
            quads = [self._woven(at, chunk, quad) for quad in range(self.spec.quads)]
            seen = [[activations(isa, vector) for vector in vectors] for vectors in quads]
            for i in range(self.pixels):
                step = column - i * g.stride_columns
                if step not in steps:
                    continue
                for quad, vectors in enumerate(seen):
                    sums[i] = self._added(isa, chunk, sums.get(i), vectors, (quad, steps.index(step)))
                if step == steps[-1]:
                    self._store(isa, row + i, chunk, sums.pop(i))

    def _woven(self, at: Expr, chunk: Chunk, quad: int) -> list[Expr]:
        """Return four int32 vectors: the bytes of up to four rows of a column."""
        g = self.spec.geometry
        words = []
        for row in range(quad * DEPTH, min(quad * DEPTH + DEPTH, g.kernel_rows)):
            place = at + (row * g.dilation_rows * row_size(g) + chunk.start)
            own = load(self.band, place, chunk.width)
            words.append(T.bind(T.reinterpret(f"uint16x{chunk.width // 2}", own)))
        weave = _transposed if self.isa.neon else _woven
        halves = [weave(words[:2], half, 8) for half in (0, 1)]
        after = [weave(words[2:], half, 8) for half in (0, 1)]
        pairs = [[_wide(v) for v in pair if v is not None] for pair in zip(halves, after, strict=True)]
        vectors = [weave(pairs[vector % 2], vector // 2, 16) for vector in range(QUARTERS)]
        return [T.bind(T.reinterpret(f"int32x{chunk.width // DEPTH}", vector)) for vector in vectors]

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
        start = load(self.arguments["bias"], chunk.place + at, count) if self.spec.short else None
        if not self.isa.neon:
            return splat(0, f"int32x{count}") if start is None else start
        weight, g = self.arguments["weight"], self.spec.geometry
        place = int(weight.shape[0]) - (packed_channels(g.channels) - chunk.place - at) * MISSING
        missing = T.reinterpret(f"int32x{count}", load(weight, place, count * MISSING))
        return missing if start is None else start + missing

    def _store(self, isa: Isa, row: Expr, chunk: Chunk, sums: list[Expr]) -> None:
        if not self.spec.short:
            self._store_groups(row, chunk, sums)
            return
        product, width = self.spec.product, chunk.width
        count = width // QUARTERS
        shifts = [load(self.arguments["shift"], chunk.place + at * count, count) for at in range(QUARTERS)]
        shifted = [T.shift_right(total, shift) for total, shift in zip(sums, shifts, strict=True)]
        packed = pack_bytes(isa, product.out_dtype, *(pack_words(isa, *shifted[i : i + 2]) for i in (0, 2)))
        # The packs work inside lanes of 128 bits: byte 4 * s + i of a lane is channel 4 * i + s.
        packed = permute(isa, packed, self.order[width])
        packed = limited(packed, product.clip)
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


def _counted(found: Sequence[Chunk]) -> list[tuple[Chunk, int]]:
    """Return the first chunk of each run of equal ones that lie side by side, and how many they are."""
    runs: list[tuple[Chunk, int]] = []
    for chunk in found:
        last, count = runs[-1] if runs else (chunk, 0)
        follows = runs and last.width == chunk.width and last.start + count * last.width == chunk.start
        runs = [*runs[:-1], (last, count + 1)] if follows else [*runs, (chunk, 1)]
    return runs


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


def _transposed(pair: Sequence[Expr], half: int, bits: int) -> Any:
    """Return what _woven does by one shuffle, which NEON has an instruction for."""
    if not pair:
        return None
    dtype, count = str(pair[0].ty.dtype), 2 * lanes(pair[0])
    narrow = f"uint{bits}x{count}"
    first, second = [*(T.reinterpret(narrow, vector) for vector in pair), splat(0, narrow)][:2]
    order = [at for lane in range(half, count, 2) for at in (lane, count + lane)]
    return T.bind(T.reinterpret(dtype, shuffle([first, second], order)))


def _wide(words: Expr) -> Expr:
    return T.reinterpret(f"uint32x{lanes(words) // 2}", words)


def _natural(width: int) -> Expr:
    """Return the byte order that undoes the packs, as permute takes it: int8 [width]."""
    lane = bytes(QUARTERS * (i % QUARTERS) + i // QUARTERS for i in range(LANES))
    words = [const(int.from_bytes(lane[at : at + 4], "little"), "int32") for at in range(0, LANES, 4)]
    return T.bind(T.reinterpret(f"int8x{width}", shuffle(words * (width // LANES), range(width // 4))))
