"""uint8 x int8 linears that store the keys or the values of an attention packed, by vpdpbusd of 512 bits.

A tile is some rows of some groups of 16 outputs; its sums stay in registers. Four rows of a group become 64
bytes by the same three packs that `linear_epilogue` makes of four groups of a row:

    part p of the packs     4 channels of row 0, the same of row 1, of row 2, of row 3
    keys                    each part is one word of 4 dims, of a quarter of the block's keys: four stores
    values                  in each part the bytes are transposed, 4 keys of each dim: one shuffle, one store

The last tile has as many rows as are left. No two threads write the same bytes: tiles begin at multiples of
four rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import packs, requantized, shifted
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, buffers
from tvmq.schedule.linear_spec import supports as supports_linear
from tvmq.schedule.packed_operand import KEYS, ROWS, PackedOperand
from tvmq.schedule.register_tiles import MIN_PARALLEL_MACS, row_chunks
from tvmq.schedule.space import Decisions, Space
from tvmq.schedule.vectors import Buffer, Expr, limited, load, prefetch, shuffle, splat, store, whole
from tvmq.schedule.weight_prefetch import line_of
from tvmq.schedule.x86_intrinsics import concat, pack_bytes, pack_words, vpdpbusd

COLUMN_TILES = (1, 2, 3, 4, 6)
MOST_SUMS = 24  # of a tile; 32 registers hold them and what they are computed from
ROW_TILES = {1: 12, 2: 8, 3: 4, 4: 4, 6: 4}  # by groups: 12 sums or more hide the latency of the dots


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandDecision:
    """How the loops are tiled and shared between threads, as in register_tiles.Decision."""

    row_tile: int  # a multiple of 4
    column_tile: int  # it divides the groups
    row_chunks: int
    parallel: bool


def supports(spec: LinearSpec, operand: PackedOperand, isa: Isa) -> str | None:
    """Return why this module has no kernel for spec, None when it has one."""
    if not isa.vnni or isa.parts > 1:
        # In 16 registers of 256 bits, four rows leave too few sums to hide the latency of the dots: 12 %
        # slower than six rows, which is more than attention gains.
        return f"{isa.name} has no vpdpbusd of 512 bits"
    if spec.out_dtype != "int8" or spec.residual or spec.table or spec.copy is not None:
        return "an operand of attention is int8 and no more"
    if (spec.rows, spec.outputs) != (operand.batch * operand.tokens, operand.heads * operand.head_dim):
        return f"{spec.rows} x {spec.outputs} is not the shape of {operand}"
    return supports_linear(spec)


def operand_space(spec: LinearSpec, threads: int) -> Space:
    """Return what `operand_linear_prim_func` may be told."""
    columns = tuple(n for n in COLUMN_TILES if spec.groups % n == 0)
    column_tile = 3 if 3 in columns else max(n for n in columns if n <= 2)
    row_tile = ROW_TILES[column_tile]
    chunks = row_chunks(-(-spec.rows // row_tile), spec.groups // column_tile, threads)
    parallel = threads > 1 and spec.rows * spec.inputs * spec.outputs >= MIN_PARALLEL_MACS
    default = OperandDecision(
        row_tile=row_tile, column_tile=column_tile, row_chunks=chunks, parallel=parallel
    )

    def valid(decisions: Decisions) -> bool:
        rows, columns, chunks = (int(decisions[n]) for n in ("row_tile", "column_tile", "row_chunks"))
        return rows * columns <= MOST_SUMS and chunks <= -(-spec.rows // rows)

    return Space(
        {
            "row_tile": tuple(range(ROWS, 4 * ROWS, ROWS)),
            "column_tile": columns,
            "row_chunks": tuple(sorted({1, threads, 2 * threads, chunks})),
            "parallel": (False, True) if threads > 1 else (False,),
        },
        asdict(default),
        valid,
    )


def operand_linear_prim_func(
    spec: LinearSpec, operand: PackedOperand, isa: Isa, decision: OperandDecision
) -> tirx.PrimFunc:
    """Return the kernel; its arguments are x86_linear's, but out, which is int8 operand.shape."""
    if reason := supports(spec, operand, isa):
        raise ValueError(f"operand_linear_prim_func: {reason}; ask supports() first")
    kinds = {**buffers(spec), "out": (operand.shape, spec.out_dtype)}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("linear")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in kinds.items()}
        units = spec.groups // decision.column_tile * decision.row_chunks
        with (T.parallel if decision.parallel else T.serial)(units) as unit, T.sblock("columns"):
            index = T.axis.spatial(units, unit)
            T.reads(*(whole(buffer) for name, buffer in arguments.items() if name != "out"))
            T.writes(whole(arguments["out"]))
            column, chunk = T.bind(index // decision.row_chunks), T.bind(index % decision.row_chunks)
            group = T.bind(column * decision.column_tile)
            _Tiles(spec, isa, decision, arguments, _Store(spec, operand, isa, arguments), group).emit(chunk)
    return builder.get()


@dataclass(slots=True)
class _Tiles:
    """Emits all tiles of a chunk of rows and of the groups from `group` on."""

    spec: LinearSpec
    isa: Isa
    decision: OperandDecision
    arguments: dict[str, Buffer]
    store: _Store
    group: Expr
    acc: list[list[Buffer]] = field(init=False)  # per row, one for each group

    def __post_init__(self) -> None:
        # A buffer for all of them, over 1024 bytes, would go to the heap.
        rows, columns = min(self.decision.row_tile, self.spec.rows), self.decision.column_tile
        self.acc = [[T.sblock_alloc_buffer((LANES,), "int32") for _ in range(columns)] for _ in range(rows)]

    def emit(self, chunk: Expr) -> None:
        full, rest = divmod(self.spec.rows, self.decision.row_tile)
        tiles = full + (rest > 0)
        per_chunk = -(-tiles // self.decision.row_chunks)
        first = T.bind(chunk * per_chunk)
        if full:
            with T.serial(T.max(T.min(full - first, per_chunk), 0)) as step:
                self._tile(T.bind(first + step), tiles, self.decision.row_tile)
        if rest:
            with T.If(chunk == full // per_chunk), T.Then():
                self._tile(full, tiles, rest)

    def _tile(self, tile: Expr, tiles: int, rows: int) -> None:
        row, depths = T.bind(tile * self.decision.row_tile), self.spec.inputs // DEPTH
        acc = self.acc[:rows]
        for each in acc:
            for total in each:
                store(total, 0, splat(0, "int32x16"))
        with T.serial(depths) as depth:
            self._prefetch(line_of(tile, depth, tiles, depths))
            self._step(acc, row, depth)
        for first in range(0, rows, ROWS):
            held = [acc[min(first + at, rows - 1)] for at in range(ROWS)]
            for column in range(self.decision.column_tile):
                sums = [load(each[column], 0, LANES) for each in held]
                self.store.emit(T.bind((row + first) // ROWS), self.group + column, sums)

    def _prefetch(self, line: Expr) -> None:
        """Ask for a line of each group of the next tile of weights: see weight_prefetch."""
        for column in range(self.decision.column_tile):
            later = T.min(self.group + self.decision.column_tile + column, self.spec.groups - 1)
            prefetch(self.arguments["weight"], (later, line, 0, 0))

    def _step(self, acc: Sequence[Sequence[Buffer]], row: Expr, depth: Expr) -> None:
        """Four bytes of every row times four weights of every output."""
        x, weight = self.arguments["x"], self.arguments["weight"]
        lines = [
            T.bind(weight[self.group + column, depth, 0, T.ramp(0, 1, LANES * DEPTH)])
            for column in range(self.decision.column_tile)
        ]
        for i, each in enumerate(acc):
            word = T.reinterpret("int32", load(x, (row + i, depth * DEPTH), DEPTH))
            four = T.bind(T.reinterpret("uint8x64", T.broadcast(word, LANES)))
            for total, line in zip(each, lines, strict=True):
                store(total, 0, vpdpbusd(self.isa, load(total, 0, LANES), four, line))


@dataclass(frozen=True, slots=True)
class _Store:
    """Emits what becomes of the sums of four rows of a group."""

    spec: LinearSpec
    operand: PackedOperand
    isa: Isa
    arguments: dict[str, Buffer]

    def emit(self, four: Expr, group: Expr, sums: Sequence[Expr]) -> None:
        """Store rows 4 * four and on; sums int32x16, without bias."""
        packed = T.bind(self._packed(group * LANES, sums))
        if self.operand.operand == KEYS:
            self._keys(four, group, packed)
        else:
            order = [16 * part + 4 * row + dim for part in range(4) for dim in range(4) for row in range(4)]
            store(self.arguments["out"], (*self._place(four, group), 0), shuffle([packed], order))

    def _packed(self, first: Expr, sums: Sequence[Expr]) -> Expr:
        """Return int8x64: four parts of four channels, in each those of every row."""
        if packs(self.spec, self.isa):
            rows = [shifted(self.arguments, first, total) for total in sums]
            packed = pack_bytes("int8", *(pack_words(rows[at], rows[at + 1]) for at in (0, 2)))
            return limited(T.reinterpret("int8x64", packed), self.spec.clip)
        rows = [requantized(self.spec, self.arguments, first, total, None) for total in sums]
        order = [4 * row + part for part in range(4) for row in range(ROWS)]
        words = shuffle([T.reinterpret("int32x16", concat(rows, LANES))], order)
        return T.reinterpret("int8x64", words)

    def _place(self, four: Expr, group: Expr) -> tuple[Expr, Expr]:
        """Return which part of the tokens of all heads the rows lie in, and which part of the dims."""
        o, per_head = self.operand, self.operand.head_dim // LANES
        step = four // (o.together // ROWS)
        head = step // o.steps * o.heads + group // per_head
        return head * o.steps + step % o.steps, group % per_head * (LANES // o.dims_together)

    def _keys(self, four: Expr, group: Expr, packed: Expr) -> None:
        self._words(four, group, packed)
        fours = -(-self.spec.rows // ROWS)
        missing = self.operand.batch * self.operand.steps * LANES // ROWS - fours
        if missing:
            with T.If(four == fours - 1), T.Then():
                order = [4 * part + ROWS - 1 for part in range(4) for _ in range(ROWS)]
                last = shuffle([T.reinterpret("int32x16", packed)], order)
                repeated = T.bind(T.reinterpret("int8x64", last))
                for more in range(1, missing + 1):
                    self._words(four + more, group, repeated)

    def _words(self, four: Expr, group: Expr, packed: Expr) -> None:
        block, word = self._place(four, group)
        byte = four % (LANES // ROWS) * (ROWS * DEPTH)
        for part in range(LANES // DEPTH):
            keys = shuffle([packed], range(16 * part, 16 * part + 16))
            store(self.arguments["out"], (block, word + part, byte), keys)
