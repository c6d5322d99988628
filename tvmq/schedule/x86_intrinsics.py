"""The x86 instructions that plain loops never become: byte dot products and table lookups in registers.

Every implementation is ONE expression: TVM turns each binding inside an intrinsic into a heap workspace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.schedule.isa import ISAS, Isa
from tvmq.schedule.linear_spec import DEPTH, LANES, TABLE_SIZE
from tvmq.schedule.vectors import lanes

TABLE_LANES = 64  # bytes of one register, the width of a lookup by vpermi2b
NIBBLE = 16  # entries of a table that pshufb looks up

Body = Callable[[Isa, Any, Any, Any], None]  # of the operands x [4], weight [16, 4] and sum [16]


@functools.cache
def register() -> None:
    """Give TVM the tensor intrinsics `Isa.dot` of those with vpdpbusd; the second call does nothing."""
    description = _dot_prim_func(ISAS[0], _plain_dot)
    for isa in {isa.dot: isa for isa in ISAS if isa.vnni}.values():
        TensorIntrin.register(isa.dot, description, _dot_prim_func(isa, _vpdpbusd_dot), override=True)


def lookup(isa: Isa, table: Any, index: Any, lanes: int) -> Any:
    """Return table[index] for a uint8 vector of 16, 32 or 64 lanes; table is a uint8 buffer.

    table has 256 entries, or 128 where every index is below 128. index is named often: bind it or load it.
    """
    if isa.vbmi:
        return _lookup_vpermi2b(table, index, lanes)
    width = min(lanes, isa.bits // 8)
    parts = [part(index, at, width) for at in range(0, lanes, width)]
    found = [_lookup_pshufb(table, each, width) for each in parts]
    return found[0] if len(found) == 1 else concat(found, width)


def concat(vectors: Sequence[Any], lanes: int) -> Any:
    """Return the vectors, of `lanes` lanes each, one after the other."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in range(len(vectors) * lanes)])


def part(vector: Any, first: int, lanes: int) -> Any:
    """Return lanes of vector from the first on."""
    return tirx.Shuffle([vector], [tirx.const(first + i, "int32") for i in range(lanes)])


def _lookup_vpermi2b(table: Any, index: Any, lanes: int) -> Any:
    """Look 7 bits up in two registers; the index's sign bit selects between two of those."""
    full = f"uint8x{TABLE_LANES}"
    wide = index if lanes == TABLE_LANES else concat([index] * (TABLE_LANES // lanes), lanes)

    def half(start: int) -> Any:
        low, high = (table[T.ramp(at, 1, TABLE_LANES)] for at in (start, start + TABLE_LANES))
        return T.call_llvm_pure_intrin(full, "llvm.x86.avx512.vpermi2var.qi.512", low, wide, high)

    found = half(0)
    if int(table.shape[0]) == TABLE_SIZE:
        below = wide < T.broadcast(T.uint8(TABLE_SIZE // 2), TABLE_LANES)
        found = tirx.Select(below, found, half(TABLE_SIZE // 2))
    return found if lanes == TABLE_LANES else part(found, 0, lanes)


_PSHUFB = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}


def _lookup_pshufb(table: Any, index: Any, lanes: int) -> Any:
    """Look the low 4 bits up in every 16 entries; each higher bit then halves the candidates."""
    size = int(table.shape[0])
    nibble = T.bitwise_and(index, T.broadcast(T.uint8(NIBBLE - 1), lanes))

    def entries(first: int) -> Any:
        row = table[T.ramp(first, 1, NIBBLE)]
        row = row if lanes == NIBBLE else concat([row] * (lanes // NIBBLE), NIBBLE)
        return pshufb(row, nibble)

    def among(first: int, count: int) -> Any:
        """Return table[first + index % count]."""
        if count == NIBBLE:
            return entries(first)
        half = count // 2
        # The bit that decides becomes the sign, which blends and masks read directly.
        words = T.reinterpret(f"uint16x{lanes // 2}", index)
        moved = T.shift_left(words, T.broadcast(T.uint16((TABLE_SIZE // count).bit_length() - 1), lanes // 2))
        sign = T.reinterpret(f"int8x{lanes}", moved) < T.broadcast(T.int8(0), lanes)
        return tirx.Select(sign, among(first + half, half), among(first, half))

    return among(0, size)


def _dot_prim_func(isa: Isa, body: Body) -> tirx.PrimFunc:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("dot")
            x = T.arg("x", T.buffer((DEPTH,), "uint8", offset_factor=1))
            weight = T.arg("weight", T.buffer((LANES, DEPTH), "int8", offset_factor=1))
            total = T.arg("total", T.buffer((LANES,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(total[0:LANES], x[0:DEPTH], weight[0:LANES, 0:DEPTH])
                T.writes(total[0:LANES])
                body(isa, x, weight, total)
        return builder.get()


def _plain_dot(_isa: Isa, x: Any, weight: Any, total: Any) -> None:
    with T.grid(LANES, DEPTH) as (i, k), T.sblock("update"):
        lane, depth = T.axis.spatial(LANES, i), T.axis.reduce(DEPTH, k)
        product = T.cast(x[depth], "int32") * T.cast(weight[lane, depth], "int32")
        T.buffer_store(total, total[lane] + product, [lane])


def _vpdpbusd_dot(isa: Isa, x: Any, weight: Any, total: Any) -> None:
    lanes = LANES // isa.parts
    x_word = T.reinterpret("int32", x[T.ramp(0, 1, DEPTH)])
    x_bytes = T.reinterpret(f"uint8x{lanes * DEPTH}", T.broadcast(x_word, lanes))

    def sums(first: int) -> Any:
        weight_bytes = weight[first, T.ramp(0, 1, lanes * DEPTH)]
        return vpdpbusd(isa, total[T.ramp(first, 1, lanes)], x_bytes, weight_bytes)

    for first in range(0, LANES, lanes):
        T.buffer_store(total, sums(first), [T.ramp(first, 1, lanes)])


def vpdpbusd(isa: Isa, total: Any, unsigned: Any, signed: Any) -> Any:
    """Return total + sums of four products uint8 x int8, for a register of each."""
    name = f"llvm.x86.avx512.vpdpbusd.{isa.bits}"
    return T.call_llvm_pure_intrin(f"int32x{LANES // isa.parts}", name, total, unsigned, signed)


_PMADDUBSW = {128: "ssse3.pmadd.ub.sw.128", 256: "avx2.pmadd.ub.sw", 512: "avx512.pmaddubs.w.512"}
_PMADDWD = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}
_PACK_WORDS = {128: "sse2.packssdw.128", 256: "avx2.packssdw", 512: "avx512.packssdw.512"}
PACK_BYTES = {
    "uint8": {128: "sse2.packuswb.128", 256: "avx2.packuswb", 512: "avx512.packuswb.512"},
    "int8": {128: "sse2.packsswb.128", 256: "avx2.packsswb", 512: "avx512.packsswb.512"},
}


def pmaddubsw(isa: Isa, unsigned: Any, signed: Any) -> Any:
    """Return the sums of two products uint8 x int8, saturated to int16, for a register of each."""
    name = f"llvm.x86.{_PMADDUBSW[isa.bits]}"
    return T.call_llvm_pure_intrin(f"int16x{2 * LANES // isa.parts}", name, unsigned, signed)


def pmaddwd(isa: Isa, left: Any, right: Any) -> Any:
    """Return the sums of two products of int16, for a register of each."""
    name = f"llvm.x86.{_PMADDWD[isa.bits]}"
    return T.call_llvm_pure_intrin(f"int32x{LANES // isa.parts}", name, left, right)


def pack_words(first: Any, second: Any) -> Any:
    """Return two registers of int32 saturated to one of int16: in turn, inside each lane of 128 bits."""
    count = lanes(first)
    return T.call_llvm_pure_intrin(f"int16x{2 * count}", f"llvm.x86.{_PACK_WORDS[32 * count]}", first, second)


def pack_bytes(dtype: str, first: Any, second: Any) -> Any:
    """Return two registers of int16 saturated to one of uint8 or int8, placed as pack_words does."""
    count = lanes(first)
    name = f"llvm.x86.{PACK_BYTES[dtype][16 * count]}"
    return T.call_llvm_pure_intrin(f"{dtype}x{2 * count}", name, first, second)


def pshufb(values: Any, index: Any) -> Any:
    """Return values[index] of bytes inside each lane of 128 bits, zeros where the index's sign is set."""
    dtype = str(values.ty.dtype)
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.{_PSHUFB[lanes(values)]}", values, index)
