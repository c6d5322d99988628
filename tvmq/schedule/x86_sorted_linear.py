"""uint8 x int8 linear layers for x86 without vpdpbusd: two instructions per register of products, not four.

The weights of a group of 16 outputs come in two runs, see `saturation`: blocks whose byte products are exact
as saturating int16 pairs, then the others, which are widened first. A tile is some rows of one group; its
sums stay in registers, and nothing is read or written outside of the buffers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.schedule.dots import activations, dot, saturating_dot, weights
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import read_residual, requantized
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, buffers
from tvmq.schedule.linear_spec import supports as supports_linear
from tvmq.schedule.register_tiles import MIN_PARALLEL_MACS
from tvmq.schedule.saturation import BLOCK, INDEX, MAX_BLOCKS, row_bytes
from tvmq.schedule.space import Space
from tvmq.schedule.x86_intrinsics import concat, lookup, part

ROWS = {128: 6, 256: 6, 512: 12}  # of a tile; measured: 6 of 128 bits spill some sums, and still do best


def supports(spec: LinearSpec) -> str | None:
    """Return why this module has no kernel for spec, None when it has one."""
    if spec.inputs // DEPTH > MAX_BLOCKS:
        return f"{spec.inputs} inputs are over {MAX_BLOCKS * DEPTH}"
    return supports_linear(spec)


def sorted_space(spec: LinearSpec, threads: int, isa: Isa) -> Space:
    """Return what `sorted_linear_prim_func` may be told."""
    rows = min(ROWS[isa.bits], spec.rows)
    choices = {min(each, spec.rows) for each in (rows - 1, rows, rows + 1, rows + 2) if each}
    tiles = -(-spec.rows // rows)
    uneven = spec.groups % threads and spec.groups < 16 * threads
    chunks = min(threads, tiles) if uneven else 1
    parallel = threads > 1 and spec.rows * spec.inputs * spec.outputs >= MIN_PARALLEL_MACS
    return Space(
        {
            "row_tile": tuple(sorted(choices)),
            "row_chunks": tuple(sorted({1, chunks, min(2 * threads, tiles)})),
            "parallel": (False, True) if threads > 1 else (False,),
        },
        {"row_tile": rows, "row_chunks": chunks, "parallel": parallel},
        lambda d: int(d["row_chunks"]) <= -(-spec.rows // int(d["row_tile"])),
    )


def sorted_linear_prim_func(
    spec: LinearSpec, isa: Isa, *, row_tile: int, row_chunks: int = 1, parallel: bool = False
) -> tirx.PrimFunc:
    """Return the kernel; it computes what x86_linear's does, weights packed by saturation.pack_sorted."""
    if reason := supports(spec):
        raise ValueError(f"sorted_linear_prim_func: {reason}; ask supports() first")
    kinds = {**buffers(spec), "weight": ((spec.groups, row_bytes(spec.inputs)), "int8")}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("linear")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in kinds.items()}
        loop = T.parallel if parallel else T.serial
        units = spec.groups * row_chunks
        with loop(units) as unit, T.sblock("group"):
            index = T.axis.spatial(units, unit)
            T.reads(*(b[tuple(slice(0, n) for n in b.shape)] for n, b in arguments.items() if n != "out"))
            T.writes(arguments["out"][0 : spec.rows, 0 : spec.outputs])
            tile = _Tile(spec, isa, arguments, row_tile, T.bind(index // row_chunks))
            tiles = -(-spec.rows // row_tile)
            per_chunk = -(-tiles // row_chunks)
            with T.serial(per_chunk) as step:
                # A last tile that does not fit is moved up: it computes some rows twice, to the same bytes.
                first = (index % row_chunks * per_chunk + step) * row_tile
                tile.emit(T.bind(T.min(first, spec.rows - row_tile)))
    return builder.get()


@dataclass(slots=True)
class _Tile:
    """Emits one tile of rows of one group."""

    spec: LinearSpec
    isa: Isa
    arguments: dict[str, Any]
    rows: int
    group: Any
    sums: list[list[Any]] = field(
        init=False
    )  # per row, one buffer per register: over 1024 bytes go to the heap

    def __post_init__(self) -> None:
        # A buffer for all of them, over 1024 bytes, would go to the heap.
        lanes = LANES // self.isa.parts
        self.sums = [
            [T.sblock_alloc_buffer((lanes,), "int32") for _ in range(self.isa.parts)]
            for _ in range(self.rows)
        ]

    def emit(self, row: Any) -> None:
        """Compute and store rows from `row` on."""
        lanes, blocks = LANES // self.isa.parts, self.spec.inputs // DEPTH
        for each in self.sums:
            for total in each:
                T.buffer_store(total, T.broadcast(T.int32(0), lanes), [T.ramp(0, 1, lanes)])
        exact = T.bind(self._index(blocks))
        with T.serial(exact) as step:
            self._accumulate(row, step, exact=True)
        with T.serial(blocks - exact) as step:
            self._accumulate(row, T.bind(step + exact), exact=False)
        last_width = self.spec.outputs - (self.spec.groups - 1) * LANES
        if last_width == LANES:
            self._finish(row, LANES)
            return
        with T.If(self.group < self.spec.groups - 1):
            with T.Then():
                self._finish(row, LANES)
            with T.Else():
                self._finish(row, last_width)

    def _index(self, at: Any) -> Any:
        """Return entry `at` of the group's index; behind the last block it is the count of exact ones."""
        first = self.spec.inputs // DEPTH * BLOCK + at * INDEX
        pair = self.arguments["weight"][self.group, T.ramp(first, 1, INDEX)]
        return T.cast(T.reinterpret("uint16", pair), "int32")

    def _accumulate(self, row: Any, step: Any, *, exact: bool) -> None:
        """Add the products of the block at `step` to all rows; exact: as saturating pairs."""
        lanes = LANES // self.isa.parts
        x, weight = self.arguments["x"], self.arguments["weight"]
        column = T.bind(self._index(step) * DEPTH)
        size = lanes * DEPTH
        registers = [
            T.bind(weight[self.group, T.ramp(step * BLOCK + at * size, 1, size)])
            for at in range(self.isa.parts)
        ]
        registers = registers if exact else [weights(self.isa, register) for register in registers]
        for i, each in enumerate(self.sums):
            word = T.bind(T.reinterpret("int32", x[row + i, T.ramp(column, 1, DEPTH)]))
            words = T.broadcast(word, lanes)
            seen = words if exact else activations(self.isa, words)
            for total, register in zip(each, registers, strict=True):
                at = T.ramp(0, 1, lanes)
                add = saturating_dot if exact else dot
                T.buffer_store(total, add(self.isa, total[at], seen, register), [at])

    def _finish(self, row: Any, width: int) -> None:
        """Store the tile; a table serves as many rows at once as fill a register."""
        together = self.isa.bits // (8 * LANES) if self.spec.table else 1
        for first in range(0, self.rows, together):
            rows = range(first, min(first + together, self.rows))
            values = [self._row(row + i, i, width) for i in rows]
            if self.spec.table:
                values = self._looked_up(values + values[-1:] * (together - len(values)))
            for i, value in zip(rows, values, strict=False):
                self._store(row + i, value, width)

    def _row(self, row: Any, i: int, width: int) -> Any:
        lanes = LANES // self.isa.parts
        parts = [total[T.ramp(0, 1, lanes)] for total in self.sums[i]]
        sums = parts[0] if len(parts) == 1 else concat(parts, lanes)
        residual = read_residual(self.spec, self.arguments, row, self.group * LANES, width)
        return T.bind(requantized(self.spec, self.arguments, self.group * LANES, sums, residual))

    def _looked_up(self, values: list[Any]) -> list[Any]:
        together = len(values)
        index = T.bind(values[0] if together == 1 else concat(values, LANES))
        found = T.bind(lookup(self.isa, self.arguments["table"], index, together * LANES))
        return [found] if together == 1 else [part(found, i * LANES, LANES) for i in range(together)]

    def _store(self, row: Any, value: Any, width: int) -> None:
        out, first = self.arguments["out"], self.group * LANES
        if width == LANES:
            T.buffer_store(out, value, [row, T.ramp(first, 1, LANES)])
            return
        staged = T.sblock_alloc_buffer((LANES,), self.spec.out_dtype)
        T.buffer_store(staged, value, [T.ramp(0, 1, LANES)])
        with T.serial(width) as lane:
            T.buffer_store(out, staged[lane], [row, first + lane])
