"""The instructions of an Isa that kernels written lane by lane use, on vectors of 16 sums.

A dot multiplies words of 4 bytes: four uint8 by four int8 with vpdpbusd, two int16 by two int16 with
pmaddwd. What is in a word is all that a kernel has to know; `left` and `right` name the element types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import Shuffle, const

from tvmq.schedule import arm_intrinsics
from tvmq.schedule.byte_vectors import pack_bytes, pack_words
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Buffer, Expr, lanes, load, shuffle, splat
from tvmq.schedule.x86_intrinsics import pmaddwd, vpdpbusd

PIECE = 16  # bytes that a transpose of dwords takes from one row


def depth(isa: Isa) -> int:
    """Return how many products go to one sum in one dot."""
    return 4 if isa.quads else 2


def query_type(isa: Isa) -> str:
    """Return the element type of q in its dots with keys; uint8 for vpdpbusd."""
    return "int8" if isa.neon else weight_type(isa)


def key_type(isa: Isa) -> str:
    """Return the element type of k in these."""
    return "int8" if isa.quads else "int16"


def weight_type(isa: Isa) -> str:
    """Return the element type of softmax's weights in their dots with values."""
    return "uint8" if isa.quads else "int16"


def value_type(isa: Isa) -> str:
    """Return the element type of v in these; NEON multiplies uint8 by uint8, so v + 128."""
    return "uint8" if isa.neon else key_type(isa)


def dot(isa: Isa, acc: Expr, first: Expr, second: Expr) -> Expr:
    """Return acc int32x16 + dots of 16 words of q or softmax's weights by 16 words of k or v."""
    count, size = 16 // isa.parts, 16 * depth(isa) // isa.parts
    sums = []
    for part in range(isa.parts):
        total = cut(acc, part * count, count)
        words = [cut(operand, part * size, size) for operand in (first, second)]
        if isa.neon:
            sums.append(arm_intrinsics.dot(isa, total, *words))
        else:
            sums.append(vpdpbusd(isa, total, *words) if isa.vnni else total + pmaddwd(isa, *words))
    return joined(sums)


def widened(isa: Isa, values: Expr) -> Expr:
    """Return int8 values as elements of `key_type`."""
    return values if isa.quads else T.cast(values, f"int16x{lanes(values)}")


def plus_128(values: Expr) -> Expr:
    """Return int8 values + 128 as uint8."""
    dtype = f"uint8x{lanes(values)}"
    return T.bitwise_xor(T.reinterpret(dtype, values), splat(128, dtype))


def packed_words(isa: Isa, first: Expr, second: Expr) -> Expr:
    """Return two int32x16 saturated to int16x32, in attention_spec.pair_order."""
    return _packed(isa, partial(pack_words, isa), first, second)


def packed_bytes(isa: Isa, first: Expr, second: Expr, dtype: str = "uint8") -> Expr:
    """Return two int16x32 of packed_words saturated to 64 of dtype; packed_place says in which order."""
    return _packed(isa, partial(pack_bytes, isa, dtype), first, second)


def _packed(isa: Isa, pack: Callable[[Expr, Expr], Expr], first: Expr, second: Expr) -> Expr:
    count = lanes(first)
    size = count // isa.parts
    return joined([pack(cut(first, at, size), cut(second, at, size)) for at in range(0, count, size)])


def natural_order(packed: Expr, vectors: int) -> Expr:
    """Return what packed_bytes made of so many int32x16, as int32, in the order of those."""
    order = [packed_place(4 * m + lane) for m in range(vectors) for lane in range(4)]
    return shuffle([T.reinterpret("int32x16", packed)], order)


def packed_place(quad: Expr) -> Expr:
    """Return where packed_bytes puts four neighbours, counted in fours; quad may be past the first 16."""
    return quad // 16 * 16 + quad % 4 * 4 + quad % 16 // 4


def saturating(operation: str, first: Expr, second: Expr) -> Expr:
    """Return the "add" or "sub" of two int16x32, saturated."""
    return T.call_llvm_pure_intrin("int16x32", f"llvm.s{operation}.sat.v32i16", first, second)


def scaled(isa: Isa, total: Expr, factor: Expr, shift: int, zero_point: int) -> Expr:
    """Return round_shift_wide(total * factor, shift) + zero_point; total int32x16, factor int32."""
    constant = (1 << (shift - 1)) + (zero_point << shift)
    if isa.neon:
        product = arm_intrinsics.multiply_long(total, T.broadcast(factor, 16))
        shifted = T.shift_right(product + splat(constant, "int64x16"), splat(shift, "int64x16"))
        return T.cast(shifted, "int32x16")
    factor, addend = T.broadcast(T.cast(factor, "int64"), 8), splat(constant, "int64x8")
    both, word = T.bind(T.reinterpret("int64x8", total)), splat(32, "int64x8")  # even and odd lanes apart
    even = T.shift_right(T.shift_left(both, word), word) * factor + addend
    odd = T.shift_right(both, word) * factor + addend
    low = T.shift_right(even, splat(shift, "int64x8"))
    up = shift - 32  # an odd lane's result goes to the upper half
    high = (T.shift_right if up >= 0 else T.shift_left)(odd, splat(abs(up), "int64x8"))
    halves = [T.reinterpret("int32x16", half) for half in (low, high)]
    return shuffle(halves, [lane + lane % 2 * 16 for lane in range(16)])


def reduce_rows(rows: Sequence[Expr], operation: Callable[[Expr, Expr], Expr]) -> Expr:
    """Return int32x4: each of four int32x16 reduced over its lanes."""

    def merged(a: Expr, b: Expr, patterns: Sequence[Sequence[int]]) -> Expr:
        halves = [
            shuffle([a, b], [4 * lane + at % 4 + 16 * (at // 4) for lane in range(4) for at in pattern])
            for pattern in patterns
        ]
        return T.bind(operation(T.bind(halves[0]), T.bind(halves[1])))

    dwords, pairs = ((0, 4, 1, 5), (2, 6, 3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7))
    result = merged(merged(rows[0], rows[1], dwords), merged(rows[2], rows[3], dwords), pairs)
    for count in (8, 4):
        low, high = (T.bind(cut(result, at, count)) for at in (0, count))
        result = T.bind(operation(low, high))
    return result


def pieces(isa: Isa, values: Expr) -> list[Expr]:
    """Return int8x16 as pieces of four words each, elements of `key_type`."""
    wide = widened(isa, values)
    count = PIECE if isa.quads else PIECE // 2
    return [cut(wide, at, count) for at in range(0, 16, count)]


def transpose_dwords(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose 4 rows int32x16 inside each of their four groups of four dwords."""

    def unpack(a: Expr, b: Expr, pattern: Sequence[int]) -> Expr:
        order = [4 * group + lane % 4 + 16 * (lane // 4) for group in range(4) for lane in pattern]
        return T.bind(shuffle([a, b], order))

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    result: list[Expr] = []
    for half in (low, high):
        upper, lower = unpack(rows[0], rows[1], half), unpack(rows[2], rows[3], half)
        result += [unpack(upper, lower, pairs_low), unpack(upper, lower, pairs_high)]
    return result


def broadcast_word(isa: Isa, buffer: Buffer, row: Expr, index: Expr) -> Expr:
    """Return a word of buffer[row] repeated 16 times."""
    word = T.reinterpret("int32", load(buffer, (row, index * depth(isa)), depth(isa)))
    return T.reinterpret(f"{buffer.dtype}x{16 * depth(isa)}", T.broadcast(word, 16))


def ones(isa: Isa) -> Expr:
    """Return 16 words of ones, elements of `value_type`."""
    return splat(1, f"{value_type(isa)}x{16 * depth(isa)}")


def valid_bytes(count: int) -> Expr:
    """Return int32x16 whose bytes are 255 where packed_bytes puts the first count numbers, 0 elsewhere."""
    natural = [packed_place(byte // 4) * 4 + byte % 4 for byte in range(count)]
    mask = bytes(255 * (byte in natural) for byte in range(64))
    words = [int.from_bytes(mask[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
    return Shuffle([const(word, "int32") for word in words], [const(lane, "int32") for lane in range(16)])


def cut(vector: Expr, first: int, count: int) -> Expr:
    """Return count lanes of vector from the first on."""
    return vector if lanes(vector) == count else shuffle([vector], range(first, first + count))


def joined(vectors: Sequence[Expr]) -> Expr:
    """Return the lanes of all vectors in turn."""
    return vectors[0] if len(vectors) == 1 else shuffle(vectors, range(sum(map(lanes, vectors))))
