"""What every instruction set does to bytes in registers, each in its way: saturate, permute, look up."""

from __future__ import annotations

from typing import Any

from tvmq.schedule import arm_intrinsics, x86_intrinsics
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Expr, shuffle


def pack_words(isa: Isa, first: Expr, second: Expr) -> Expr:
    """Return two registers of int32 saturated to one of int16: in turn, inside each lane of 128 bits."""
    pack = arm_intrinsics.pack_words if isa.neon else x86_intrinsics.pack_words
    return pack(first, second)


def pack_bytes(isa: Isa, dtype: str, first: Expr, second: Expr) -> Expr:
    """Return two registers of int16 saturated to one of uint8 or int8, placed as pack_words does."""
    pack = arm_intrinsics.pack_bytes if isa.neon else x86_intrinsics.pack_bytes
    return pack(dtype, first, second)


def permute(isa: Isa, values: Expr, index: Expr) -> Expr:
    """Return values[index] of bytes inside each lane of 128 bits; index is below 16."""
    return arm_intrinsics.permute(values, index) if isa.neon else x86_intrinsics.pshufb(values, index)


def lookup(isa: Isa, table: Any, index: Expr, lanes: int) -> Expr:
    """Return table[index] for a uint8 vector of 16, 32 or 64 lanes; table is a uint8 buffer.

    table has 256 entries, or 128 where every index is below 128. index is named often: bind it or load it.
    """
    if not isa.neon:
        return x86_intrinsics.lookup(isa, table, index, lanes)
    width = arm_intrinsics.REGISTER
    if lanes == width:
        return arm_intrinsics.lookup(table, index)
    parts = [shuffle([index], range(at, at + width)) for at in range(0, lanes, width)]
    return shuffle([arm_intrinsics.lookup(table, part) for part in parts], range(lanes))
