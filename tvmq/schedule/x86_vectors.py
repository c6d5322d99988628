"""The instructions of an Isa that kernels written lane by lane use, on vectors of 16 sums.

A dot multiplies words of 4 bytes: four uint8 by four int8 with vpdpbusd, two int16 by two int16 with
pmaddwd. What is in a word is all that a kernel has to know; `left` and `right` name the element types.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import Shuffle, const

from tvmq.schedule.vectors import Buffer, Expr, lanes, load, shuffle, splat
from tvmq.schedule.x86_intrinsics import pmaddwd, vpdpbusd
from tvmq.schedule.x86_isa import Isa

PACK_WORDS = {128: "sse2.packssdw.128", 256: "avx2.packssdw", 512: "avx512.packssdw.512"}
PACK_BYTES = {128: "sse2.packuswb.128", 256: "avx2.packuswb", 512: "avx512.packuswb.512"}
PIECE = 16  # bytes that a transpose of dwords takes from one row


def depth(isa: Isa) -> int:
    """Return how many products go to one sum in one dot."""
    return 4 if isa.vnni else 2


def left(isa: Isa) -> str:
    """Return the element type of a dot's first operand; uint8 for vpdpbusd."""
    return "uint8" if isa.vnni else "int16"


def right(isa: Isa) -> str:
    """Return the element type of a dot's second operand."""
    return "int8" if isa.vnni else "int16"


def dot(isa: Isa, acc: Expr, first: Expr, second: Expr) -> Expr:
    """Return acc int32x16 + dots of 16 words of `left` by 16 words of `right`."""
    count, size = 16 // isa.parts, 16 * depth(isa) // isa.parts
    sums = []
    for part in range(isa.parts):
        total = cut(acc, part * count, count)
        words = [cut(operand, part * size, size) for operand in (first, second)]
        sums.append(vpdpbusd(isa, total, *words) if isa.vnni else total + pmaddwd(isa, *words))
    return joined(sums)


def widened(isa: Isa, values: Expr) -> Expr:
    """Return int8 values as elements of `right`."""
    return values if isa.vnni else T.cast(values, f"int16x{lanes(values)}")


def clipped_bytes(isa: Isa, vectors: Sequence[Expr]) -> Expr:
    """Return the numbers of four int32x16, none of them negative, saturated to uint8x64."""
    count = 16 // isa.parts
    registers = [cut(v, at, count) for v in vectors for at in range(0, 16, count)]
    # The packs work inside lanes of 128 bits: dword 4*lane + m holds numbers 4*lane..4*lane+3 of register m.
    order = [4 * lane + m for m in range(4) for lane in range(count // 4)]
    packed = []
    for at in range(0, len(registers), 4):
        words = [
            _llvm(PACK_WORDS[isa.bits], f"int16x{2 * count}", *registers[at + m : at + m + 2]) for m in (0, 2)
        ]
        dwords = T.reinterpret(f"int32x{count}", _llvm(PACK_BYTES[isa.bits], f"uint8x{4 * count}", *words))
        packed.append(T.reinterpret(f"uint8x{4 * count}", shuffle([dwords], order)))
    return joined(packed)


def pieces(isa: Isa, values: Expr) -> list[Expr]:
    """Return int8x16 as pieces of four words each, elements of `right`."""
    wide = widened(isa, values)
    count = PIECE if isa.vnni else PIECE // 2
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
    """Return a word of buffer[row], elements of `left`, repeated 16 times."""
    word = T.reinterpret("int32", load(buffer, (row, index * depth(isa)), depth(isa)))
    return T.reinterpret(f"{left(isa)}x{16 * depth(isa)}", T.broadcast(word, 16))


def ones(isa: Isa) -> Expr:
    """Return 16 words of ones, elements of `right`."""
    return splat(1, f"{right(isa)}x{16 * depth(isa)}")


def valid_bytes(count: int) -> Expr:
    """Return int32x16 whose first count bytes are 255 and the others 0."""
    mask = bytes(255 * (byte < count) for byte in range(64))
    words = [int.from_bytes(mask[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
    return Shuffle([const(word, "int32") for word in words], [const(lane, "int32") for lane in range(16)])


def cut(vector: Expr, first: int, count: int) -> Expr:
    """Return count lanes of vector from the first on."""
    return vector if lanes(vector) == count else shuffle([vector], range(first, first + count))


def joined(vectors: Sequence[Expr]) -> Expr:
    """Return the lanes of all vectors in turn."""
    return vectors[0] if len(vectors) == 1 else shuffle(vectors, range(sum(map(lanes, vectors))))


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.{name}", *operands)
