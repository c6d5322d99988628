"""The NEON instructions that plain loops never become: dots of bytes, tables and saturating moves.

Operands are registers of 128 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Expr, lanes, shuffle, splat

REGISTER = 16  # bytes
TABLE_REGISTERS = 4  # that one tbl looks up in
_NARROW = {"int8": "sqxtn", "uint8": "sqxtun"}


def dot(isa: Isa, total: Expr, left: Expr, right: Expr) -> Expr:
    """Return int32x4 total plus dots of four of int8x16 by int8x16, or of uint8x16 by uint8x16.

    right may be a lane in all places: one instruction takes that from the register it is in.
    """
    sign = "s" if _is_signed(left) else "u"
    if isa.dotprod:
        return _call("int32x4", f"{sign}dot.v4i32.v16i8", total, left, right)
    low, high = _products(sign, left, right)
    sums = [_call(_wide(sign), f"{sign}addlp.v4i32.v8i16", products) for products in (low, high)]
    words = [T.reinterpret("int32x4", values) for values in sums]
    return total + _call("int32x4", "addp.v4i32", *words)


def dot_of_weights(isa: Isa, total: Expr, left: Expr, right: Expr) -> Expr:
    """Return dot(...) of int8x16, where no two bytes that stand for one sum are both -128 in left and in
    right: no sum of two products reaches 2**15."""
    if isa.dotprod:
        return dot(isa, total, left, right)
    pairs = _call("int16x8", "addp.v8i16", *_products("s", left, right))
    return total + _call("int32x4", "saddlp.v4i32.v8i16", pairs)


def multiply_pairs(total: Expr, pixels: Expr, weights: Expr) -> Expr:
    """Return int32x4 total plus the dots of two rows of 8 uint8 by two of 8 int8.

    In turn: the first row by both, the second row by both.
    """
    return _call("int32x4", "usmmla.v4i32.v16i8", total, pixels, weights)


def pairs_stay_in_words(packed: npt.NDArray[np.int8]) -> bool:
    """Whether dot_of_weights is exact for weights that lie as it takes them, whatever they multiply."""
    return not (packed.reshape(-1, 2) == -128).all(-1).any()


def lookup(table: Any, index: Expr) -> Expr:
    """Return table[index] of a uint8x16; table is a uint8 buffer of a multiple of 64 entries."""
    reach = REGISTER * TABLE_REGISTERS
    found: Expr = None
    for first in range(0, int(table.shape[0]), reach):
        rows = [table[T.ramp(first + at, 1, REGISTER)] for at in range(0, reach, REGISTER)]
        if found is None:
            found = _call("uint8x16", "tbl4.v16i8", *rows, index)
        else:  # an index out of reach leaves what was found
            found = _call("uint8x16", "tbx4.v16i8", found, *rows, index - splat(first, "uint8x16"))
    return found


def permute(values: Expr, index: Expr) -> Expr:
    """Return values[index] of 16 bytes, zeros where the index is past them."""
    return _call(str(values.ty.dtype), "tbl1.v16i8", values, index)


def multiply_long(first: Expr, second: Expr) -> Expr:
    """Return the products of two int32xN as int64xN; LLVM multiplies 64 bits by 64, one by one."""
    count = lanes(first)
    pieces = [
        _call("int64x2", "smull.v2i64", *(shuffle([factor], (at, at + 1)) for factor in (first, second)))
        for at in range(0, count, 2)
    ]
    return shuffle(pieces, range(count))


def pack_words(first: Expr, second: Expr) -> Expr:
    """Return two int32x4 saturated to int16x8, one after the other."""
    halves = [_call("int16x4", "sqxtn.v4i16", half) for half in (first, second)]
    return shuffle(halves, range(8))


def pack_bytes(dtype: str, first: Expr, second: Expr) -> Expr:
    """Return two int16x8 saturated to 16 of uint8 or int8, one after the other."""
    halves = [_call(f"{dtype}x8", f"{_NARROW[dtype]}.v8i8", half) for half in (first, second)]
    return shuffle(halves, range(16))


def _products(sign: str, left: Expr, right: Expr) -> Sequence[Expr]:
    """Return the products of 16 bytes, in the lower half and in the upper one."""
    halves = ([shuffle([operand], range(at, at + 8)) for operand in (left, right)] for at in (0, 8))
    dtype = f"{'int' if sign == 's' else 'uint'}16x8"
    return [_call(dtype, f"{sign}mull.v8i16", *pair) for pair in halves]


def _wide(sign: str) -> str:
    return "int32x4" if sign == "s" else "uint32x4"


def _is_signed(values: Expr) -> bool:
    assert lanes(values) == REGISTER
    return str(values.ty.dtype).startswith("int")


def _call(dtype: str, name: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.aarch64.neon.{name}", *operands)
