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

from tvmq.schedule.linear_spec import DEPTH, LANES, TABLE_SIZE
from tvmq.schedule.x86_isa import ISAS, Isa

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
    size, dtype = int(table.shape[0]), f"uint8x{lanes}"
    nibble = T.bitwise_and(index, T.broadcast(T.uint8(NIBBLE - 1), lanes))

    def entries(first: int) -> Any:
        row = table[T.ramp(first, 1, NIBBLE)]
        row = row if lanes == NIBBLE else concat([row] * (lanes // NIBBLE), NIBBLE)
        return T.call_llvm_pure_intrin(dtype, f"llvm.x86.{_PSHUFB[lanes]}", row, nibble)

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


def widened_dot(isa: Isa, x_word: Any, weight: Any) -> Any:
    """Return the sums of four of the uint8 in x_word times a register of int8, exact for all of them.

    The even and the odd bytes are multiplied as int16 pairs: no sum leaves its lane.
    """
    lanes = LANES // isa.parts
    words, pairs = f"int16x{2 * lanes}", f"uint16x{2 * lanes}"
    byte = T.broadcast(T.int16(8), 2 * lanes)
    x_words = T.reinterpret(pairs, T.broadcast(x_word, lanes))
    x_even = T.reinterpret(words, T.bitwise_and(x_words, T.broadcast(T.uint16(255), 2 * lanes)))
    x_odd = T.reinterpret(words, T.shift_right(x_words, T.broadcast(T.uint16(8), 2 * lanes)))
    both = T.reinterpret(words, weight)
    even = T.shift_right(T.shift_left(both, byte), byte)
    return pmaddwd(isa, x_even, even) + pmaddwd(isa, x_odd, T.shift_right(both, byte))


def saturating_dot(isa: Isa, x_word: Any, weight: Any) -> Any:
    """Return what widened_dot does, exact where `saturation` says so."""
    lanes = LANES // isa.parts
    x_bytes = T.reinterpret(f"uint8x{DEPTH * lanes}", T.broadcast(x_word, lanes))
    pairs = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", f"llvm.x86.{_PMADDUBSW[isa.bits]}", x_bytes, weight)
    return pmaddwd(isa, pairs, T.broadcast(T.int16(1), 2 * lanes))


def vpdpbusd(isa: Isa, total: Any, unsigned: Any, signed: Any) -> Any:
    """Return total + sums of four products uint8 x int8, for a register of each."""
    name = f"llvm.x86.avx512.vpdpbusd.{isa.bits}"
    return T.call_llvm_pure_intrin(f"int32x{LANES // isa.parts}", name, total, unsigned, signed)


_PMADDUBSW = {128: "ssse3.pmadd.ub.sw.128", 256: "avx2.pmadd.ub.sw", 512: "avx512.pmaddubs.w.512"}
_PMADDWD = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}


def pmaddwd(isa: Isa, left: Any, right: Any) -> Any:
    """Return the sums of two products of int16, for a register of each."""
    name = f"llvm.x86.{_PMADDWD[isa.bits]}"
    return T.call_llvm_pure_intrin(f"int32x{LANES // isa.parts}", name, left, right)
