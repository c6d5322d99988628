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

VNNI_DOT = "vnni_dot_16x4_u8s8s32"  # AVX-512 VNNI
PMADDWD_DOT = "pmaddwd_dot_16x4_u8s8s32"  # AVX2

TABLE_LANES = 64  # bytes of one register, the width of a lookup by vpermi2b

Body = Callable[[Any, Any, Any], None]  # of the operands x [4], weight [16, 4] and sum [16]


@functools.cache
def register() -> None:
    """Give TVM the tensor intrinsics of this module; the second call does nothing."""
    description = _dot_prim_func(_plain_dot)
    for name, body in ((VNNI_DOT, _vnni_dot), (PMADDWD_DOT, _pmaddwd_dot)):
        TensorIntrin.register(name, description, _dot_prim_func(body), override=True)


def concat(vectors: Sequence[Any], lanes: int) -> Any:
    """Return the vectors, of `lanes` lanes each, one after the other."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in range(len(vectors) * lanes)])


def leading(vector: Any, lanes: int) -> Any:
    """Return the first lanes of vector."""
    return tirx.Shuffle([vector], [tirx.const(i, "int32") for i in range(lanes)])


def lookup_vbmi(table: Any, index: Any, lanes: int) -> Any:
    """Return table[index] for a uint8 vector of 16, 32 or 64 lanes; table is a uint8 [256] buffer.

    vpermi2b looks 7 bits up in two registers; the index's sign bit selects between two of those.
    """
    full = f"uint8x{TABLE_LANES}"
    wide = index if lanes == TABLE_LANES else concat([index] * (TABLE_LANES // lanes), lanes)

    def half(start: int) -> Any:
        low, high = (table[T.ramp(at, 1, TABLE_LANES)] for at in (start, start + TABLE_LANES))
        return T.call_llvm_pure_intrin(full, "llvm.x86.avx512.vpermi2var.qi.512", low, wide, high)

    below = wide < T.broadcast(T.uint8(TABLE_SIZE // 2), TABLE_LANES)
    found = tirx.Select(below, half(0), half(TABLE_SIZE // 2))
    return found if lanes == TABLE_LANES else leading(found, lanes)


def lookup_scalar(table: Any, index: Any) -> Any:
    """Return table[index] for one uint8 index."""
    return table[T.cast(index, "int32")]


def _dot_prim_func(body: Body) -> tirx.PrimFunc:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("dot")
            x = T.arg("x", T.buffer((DEPTH,), "uint8", offset_factor=1))
            weight = T.arg("weight", T.buffer((LANES, DEPTH), "int8", offset_factor=1))
            total = T.arg("total", T.buffer((LANES,), "int32", offset_factor=1))
            with T.sblock("root"):
                T.reads(total[0:LANES], x[0:DEPTH], weight[0:LANES, 0:DEPTH])
                T.writes(total[0:LANES])
                body(x, weight, total)
        return builder.get()


def _plain_dot(x: Any, weight: Any, total: Any) -> None:
    with T.grid(LANES, DEPTH) as (i, k), T.sblock("update"):
        lane, depth = T.axis.spatial(LANES, i), T.axis.reduce(DEPTH, k)
        product = T.cast(x[depth], "int32") * T.cast(weight[lane, depth], "int32")
        T.buffer_store(total, total[lane] + product, [lane])


def _vnni_dot(x: Any, weight: Any, total: Any) -> None:
    x_word = T.reinterpret("int32", x[T.ramp(0, 1, DEPTH)])
    lanes = T.ramp(0, 1, LANES)
    dot = T.call_llvm_pure_intrin(
        "int32x16",
        "llvm.x86.avx512.vpdpbusd.512",
        total[lanes],
        T.reinterpret("uint8x64", T.broadcast(x_word, LANES)),
        weight[0, T.ramp(0, 1, LANES * DEPTH)],
    )
    T.buffer_store(total, dot, [lanes])


def _pmaddwd_dot(x: Any, weight: Any, total: Any) -> None:
    """Multiply the even and the odd bytes of each word as int16 pairs: no sum leaves its lane."""
    x_word = T.broadcast(T.reinterpret("int32", x[T.ramp(0, 1, DEPTH)]), 8)
    even_bytes = T.broadcast(T.int32(0x00FF00FF), 8)
    x_even = T.bitwise_and(x_word, even_bytes)
    x_odd = T.bitwise_and(T.shift_right(x_word, T.broadcast(T.int32(8), 8)), even_bytes)
    byte = T.broadcast(T.int16(8), 16)

    def half(first_lane: int) -> Any:
        words = T.reinterpret("int16x16", weight[first_lane, T.ramp(0, 1, 8 * DEPTH)])
        odd = T.shift_right(words, byte)
        even = T.shift_right(T.shift_left(words, byte), byte)
        return _pmaddwd(x_even, even) + _pmaddwd(x_odd, odd)

    lanes = T.ramp(0, 1, LANES)
    T.buffer_store(total, total[lanes] + concat([half(0), half(8)], 8), [lanes])


def _pmaddwd(x_pairs: Any, weight_pairs: Any) -> Any:
    return T.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx2.pmadd.wd", T.reinterpret("int16x16", x_pairs), weight_pairs
    )
