"""uint8 x int8 linear layers in AMX tiles: 16 rows by 16 outputs by 64 inputs in one instruction.

    tmm0..3  sums of 2 x 2 blocks of 16 rows and 16 outputs, int32
    tmm4, 5  64 inputs of 2 x 16 rows, as they lie in x
    tmm6, 7  64 inputs of 2 groups of 16 outputs, as linear_spec.pack_weight lays them

LLVM allocates no tile registers for TVM, so all of them are named here. A last block of rows that does not
fit is moved up: it computes some outputs twice, to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Shuffle, const
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import requantized
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, buffers
from tvmq.schedule.linear_spec import supports as supports_linear
from tvmq.schedule.register_tiles import MIN_PARALLEL_MACS
from tvmq.schedule.x86_intrinsics import concat, lookup, part

BLOCK_ROWS = 16
BLOCK_INPUTS = 64
SUMS, LEFT, RIGHT = 0, 4, 6  # first tile register of each kind
TOGETHER = 4  # groups of 16 outputs that are requantized at once: 64 bytes


def supports(spec: LinearSpec) -> str | None:
    """Return why this module has no kernel for spec, None when it has one."""
    if spec.inputs % BLOCK_INPUTS:
        return f"{spec.inputs} inputs are not a multiple of {BLOCK_INPUTS}"
    if spec.rows < BLOCK_ROWS:
        return f"{spec.rows} rows do not fill a tile of {BLOCK_ROWS}"
    if spec.outputs % (2 * LANES):
        return f"{spec.outputs} outputs are not a multiple of {2 * LANES}"
    return supports_linear(spec)


def amx_linear_prim_func(spec: LinearSpec, isa: Isa, threads: int) -> tirx.PrimFunc:
    """Return the kernel; it computes what x86_linear's does, from the same arguments."""
    if reason := supports(spec):
        raise ValueError(f"amx_linear_prim_func: {reason}; ask supports() first")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("linear")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec).items()}
        parallel = threads > 1 and spec.rows * spec.inputs * spec.outputs >= MIN_PARALLEL_MACS
        units = spec.groups // 2
        with (T.parallel if parallel else T.serial)(units) as unit, T.sblock("groups"):
            index = T.axis.spatial(units, unit)
            T.reads(*(b[tuple(slice(0, n) for n in b.shape)] for n, b in arguments.items() if n != "out"))
            T.writes(arguments["out"][0 : spec.rows, 0 : spec.outputs])
            _Tiles(spec, isa, arguments, T.bind(index * 2)).emit()
    return builder.get()


def tile_configuration() -> bytes:
    """Return what ldtilecfg reads: palette 1, all eight tiles of 16 rows of 64 bytes."""
    rows, row_bytes = bytes([BLOCK_ROWS] * 8), (BLOCK_INPUTS).to_bytes(2, "little") * 8
    return bytes([1]) + bytes(15) + row_bytes + bytes(16) + rows + bytes(8)


@dataclass(slots=True)
class _Tiles:
    """Emits all rows of two groups of outputs, on one thread."""

    spec: LinearSpec
    isa: Isa
    arguments: dict[str, Any]
    group: Any
    totals: Any = None

    def emit(self) -> None:
        """Configure the tiles, compute and store, release them."""
        configuration = T.sblock_alloc_buffer((BLOCK_INPUTS,), "uint8")
        self.totals = T.sblock_alloc_buffer((2 * BLOCK_ROWS, 2 * LANES), "int32")
        raw = tile_configuration()
        words = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        vector = Shuffle([const(w, "int32") for w in words], [const(i, "int32") for i in range(len(words))])
        T.buffer_store(configuration, T.reinterpret("uint8x64", vector), [T.ramp(0, 1, 64)])
        _amx("ldtilecfg", configuration.access_ptr("r"))
        rows = self.spec.rows
        full, rest = divmod(rows, 2 * BLOCK_ROWS)
        if full:
            with T.serial(full) as step:
                self._blocks(T.bind(step * 2 * BLOCK_ROWS), 2)
        if rest:
            blocks = 1 if rest <= BLOCK_ROWS or not full else 2
            if not full and rest > BLOCK_ROWS:
                self._blocks(0, 1)
            self._blocks(rows - blocks * BLOCK_ROWS, blocks)
        _amx("tilerelease")

    def _blocks(self, row: Any, count: int) -> None:
        """Compute and store `count` blocks of rows from `row` on."""
        x, weight, inputs = self.arguments["x"], self.arguments["weight"], self.spec.inputs
        for tile in range(2 * count):
            _amx("tilezero", _register(SUMS + tile))
        with T.serial(inputs // BLOCK_INPUTS) as step:
            for i in range(count):
                at = (row + i * BLOCK_ROWS) * inputs + step * BLOCK_INPUTS
                _amx("tileloadd64", _register(LEFT + i), x.access_ptr("r", offset=at), const(inputs, "int64"))
            for j in range(2):
                at = ((self.group + j) * (inputs // DEPTH) + step * BLOCK_ROWS) * BLOCK_INPUTS
                pointer = weight.access_ptr("r", offset=at)
                _amx("tileloadd64", _register(RIGHT + j), pointer, const(BLOCK_INPUTS, "int64"))
            for i in range(count):
                for j in range(2):
                    _amx("tdpbusd", *map(_register, (SUMS + 2 * i + j, LEFT + i, RIGHT + j)))
        stride = 2 * LANES
        for i in range(count):
            for j in range(2):
                pointer = self.totals.access_ptr("w", offset=i * BLOCK_ROWS * stride + j * LANES)
                _amx("tilestored64", _register(SUMS + 2 * i + j), pointer, const(4 * stride, "int64"))
        with T.serial(count * BLOCK_ROWS * 2 // TOGETHER) as step:
            self._finish(row, T.bind(step * (TOGETHER // 2)))

    def _finish(self, row: Any, at: Any) -> None:
        """Requantize and store two rows of two groups, from row `at` of the totals on."""
        pairs = [(i, j) for i in range(TOGETHER // 2) for j in range(2)]
        values = [self._group(row + at + i, at + i, j) for i, j in pairs]
        if self.spec.table:
            index = T.sblock_alloc_buffer((TOGETHER * LANES,), "uint8")
            lanes = T.ramp(0, 1, TOGETHER * LANES)
            T.buffer_store(index, concat(values, LANES), [lanes])
            found = T.bind(lookup(self.isa, self.arguments["table"], index[lanes], TOGETHER * LANES))
            values = [part(found, n * LANES, LANES) for n in range(TOGETHER)]
        for (i, j), value in zip(pairs, values, strict=True):
            first = (self.group + j) * LANES
            T.buffer_store(self.arguments["out"], value, [row + at + i, T.ramp(first, 1, LANES)])

    def _group(self, row: Any, at: Any, j: int) -> Any:
        sums, first = self.totals[at, T.ramp(j * LANES, 1, LANES)], (self.group + j) * LANES
        residual = None
        if self.spec.residual:
            residual = self.arguments["residual"][row, T.ramp(first, 1, LANES)]
        return T.bind(requantized(self.spec, self.arguments, first, sums, residual))


def _amx(name: str, *operands: Any) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def _register(number: int) -> Any:
    return const(number, "int8")
