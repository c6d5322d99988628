"""The AVX-512 instructions that kernels written lane by lane use, as vector expressions.

Everything that another instruction set does in another way is here: dots of bytes, saturating packs, byte
tables, transposes of dwords.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import Shuffle, const

from tvmq.schedule.vectors import Buffer, Expr, load, shuffle, splat


def dot(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """Return acc int32x16 + dots of four: uint8x64 times int8x64."""
    return _llvm("vpdpbusd.512", "int32x16", acc, unsigned, signed)


def clipped_bytes(vectors: Sequence[Expr]) -> Expr:
    """Return the numbers of four int32x16, which are not negative, saturated to uint8x64.

    In the packs' order, which works inside lanes of 128 bits; `in_order` mends it.
    """
    words = [_llvm("packssdw.512", "int16x32", *vectors[m : m + 2]) for m in (0, 2)]
    return _llvm("packuswb.512", "uint8x64", *words)


def in_order(packed: Expr) -> Expr:
    """Return the bytes of clipped_bytes, as int32x16, in the order of its operands.

    Dword 4*lane + m holds numbers 4*lane..4*lane+3 of vector m.
    """
    order = [4 * lane + m for m in range(4) for lane in range(4)]
    return shuffle([T.reinterpret("int32x16", packed)], order)


def lookup128(table: Buffer, index: Expr, *, vbmi: bool) -> Expr:
    """Return table[index] for uint8x64 indices below 128; vbmi: the target has a byte permute."""
    low, high = (load(table, part, 64) for part in (0, 64))
    if vbmi:
        return _llvm("vpermi2var.qi.512", "uint8x64", low, index, high)
    # No byte permute: look up the 64 words of the table twice, for the even and for the odd bytes of
    # index, then pick the byte of the word by the index's lowest bit.
    words = T.bind(T.reinterpret("uint16x32", index))
    tables = [T.reinterpret("uint16x32", part) for part in (low, high)]
    even, odd = (
        T.bind(_llvm("vpermi2var.hi.512", "uint16x32", tables[0], _shift(words, by), tables[1]))
        for by in (1, 9)
    )
    first = T.bitwise_or(T.bitwise_and(even, splat(255, "uint16x32")), odd << splat(8, "uint16x32"))
    second = T.bitwise_or(_shift(even, 8), T.bitwise_and(odd, splat(0xFF00, "uint16x32")))
    is_odd = T.bitwise_and(index, splat(1, "uint8x64")).equal(splat(1, "uint8x64"))
    return T.Select(is_odd, T.reinterpret("uint8x64", second), T.reinterpret("uint8x64", first))


def transpose_dwords(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose 4 rows int32x16 inside each of their four groups of four dwords."""

    def unpack(a: Expr, b: Expr, pattern: Sequence[int]) -> Expr:
        order = [4 * group + lane % 4 + 16 * (lane // 4) for group in range(4) for lane in pattern]
        return T.bind(shuffle([a, b], order))

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    result: list[Expr] = []
    for half in (low, high):
        left, right = unpack(rows[0], rows[1], half), unpack(rows[2], rows[3], half)
        result += [unpack(left, right, pairs_low), unpack(left, right, pairs_high)]
    return result


def broadcast_quad(buffer: Buffer, row: Expr, quad: Expr) -> Expr:
    """Return four bytes of buffer[row], repeated 16 times, as uint8x64."""
    word = T.reinterpret("int32", load(buffer, (row, quad * 4), 4))
    return T.reinterpret("uint8x64", T.broadcast(word, 16))


def valid_bytes(count: int) -> Expr:
    """Return int32x16 whose first count bytes are 255 and the others 0."""
    mask = bytes(255 * (byte < count) for byte in range(64))
    words = [int.from_bytes(mask[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
    return Shuffle([const(word, "int32") for word in words], [const(lane, "int32") for lane in range(16)])


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.avx512.{name}", *operands)


def _shift(words: Expr, by: int) -> Expr:
    return T.shift_right(words, splat(by, "uint16x32"))
