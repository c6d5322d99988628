"""Dots of four bytes for kernels written statement by statement; `x86_intrinsics` has them for schedules.

Operands are vectors of one register of an Isa: N sums int32, N times four uint8 that share a register, and N
times four int8. `activations` and `weights` do once what several dots share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.bit_planes import BYTE, Plane
from tvmq.schedule.arm_intrinsics import dot_of_weights
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Expr, lanes, splat
from tvmq.schedule.x86_intrinsics import pmaddubsw, pmaddwd, vpdpbusd

# Groups of 16 sums that a tile may hold without spilling, by (bits, vnni).
REGISTERS = {(512, True): 24, (512, False): 20, (256, True): 6, (256, False): 4, (128, False): 2}
NEON_REGISTERS = {True: 6, False: 4}  # by dotprod: without it, products wait in registers for being added


def most_groups(isa: Isa) -> int:
    """Return how many groups of 16 sums a tile may hold without spilling."""
    return NEON_REGISTERS[isa.dotprod] if isa.neon else REGISTERS[isa.bits, isa.vnni]


def activations(isa: Isa, words: Expr) -> Any:
    """Return int32xN, four uint8 each (on NEON less 128, int8, see `signed`), as dot takes them."""
    if isa.neon:
        return T.reinterpret(f"int8x{4 * lanes(words)}", words)
    if isa.vnni:
        return T.bind(T.reinterpret(f"uint8x{4 * lanes(words)}", words))
    pairs, words16 = (f"{kind}16x{2 * lanes(words)}" for kind in ("uint", "int"))
    both = T.bind(T.reinterpret(pairs, words))
    even = T.bitwise_and(both, splat(255, pairs))
    odd = T.shift_right(both, splat(8, pairs))
    return [T.bind(T.reinterpret(words16, part)) for part in (even, odd)]


def weights(isa: Isa, values: Expr) -> Any:
    """Return int8x4N as dot takes them."""
    if isa.quads:
        return T.bind(values)
    words = f"int16x{lanes(values) // 2}"
    both, byte = T.bind(T.reinterpret(words, values)), splat(8, words)
    return [T.bind(T.shift_right(T.shift_left(both, byte), byte)), T.bind(T.shift_right(both, byte))]


def dot(isa: Isa, total: Expr, activation: Any, weight: Any) -> Expr:
    """Return int32xN total plus N dots of four."""
    if isa.neon:
        return dot_of_weights(isa, total, weight, activation)
    if isa.vnni:
        return vpdpbusd(isa, total, activation, weight)
    # Even and odd bytes as pairs of int16: no sum leaves its lane, and none of two products leaves int32.
    even, odd = (pmaddwd(isa, a, w) for a, w in zip(activation, weight, strict=True))
    return total + (even + odd)


def signed(values: Expr) -> Expr:
    """Return a vector of uint8 less 128, the bits of an int8, as `activations` on NEON are cut from it."""
    return T.bitwise_xor(values, splat(128, str(values.ty.dtype)))


def saturating_dot(isa: Isa, total: Expr, words: Expr, values: Expr) -> Expr:
    """Return int32xN total plus N dots of four, exact where `saturation` says so, without vpdpbusd."""
    pairs = pmaddubsw(isa, T.reinterpret(f"uint8x{4 * lanes(words)}", words), values)
    return total + pmaddwd(isa, pairs, splat(1, f"int16x{2 * lanes(words)}"))


def unpacked(isa: Isa, bits: int, stored: Sequence[tuple[Plane, int, Expr]]) -> Any:
    """Return the weights of one step, packed as in bit_planes, as packed_dot takes them.

    stored: of each plane, which place in its bytes the step has, and a register of them, int8.
    """
    down = 0 if isa.quads else BYTE - bits
    parts = [_part_of_weight(plane, place, values, down) for plane, place, values in stored]
    found = functools.reduce(T.bitwise_or, parts)
    dtype = f"int8x{lanes(found)}"
    if isa.quads:
        return T.bind(T.reinterpret(dtype, found))
    sign = 1 << (bits - 1)
    flipped = T.bitwise_xor(found, splat(sign, f"uint8x{lanes(found)}"))
    return T.bind(T.reinterpret(dtype, flipped) - splat(sign, dtype))


def packed_dot(isa: Isa, total: Expr, words: Expr, values: Expr) -> Expr:
    """Return total plus dots of four of int32 words by what `unpacked` gave: exact, and see packed_sums."""
    if isa.quads:
        return dot(isa, total, activations(isa, words), values)
    return saturating_dot(isa, total, words, values)  # no pair of weights reaches the limit


def packed_sums(isa: Isa, bits: int, sums: Expr) -> Expr:
    """Return sums of packed_dot in the units of weights that lie in the highest bits of an int8."""
    return sums if isa.quads else T.shift_left(sums, splat(BYTE - bits, f"int32x{lanes(sums)}"))


def _part_of_weight(plane: Plane, place: int, values: Expr, down: int) -> Expr:
    """Return the bits at one place of a plane's bytes, uint8, `down` bits below where a weight has them."""
    dtype = f"uint8x{lanes(values)}"
    moved, left = T.reinterpret(dtype, values), place * plane.width - plane.above - down
    if left > 0:
        moved = T.shift_left(moved, splat(left, dtype))
    elif left < 0:
        moved = T.shift_right(moved, splat(-left, dtype))
    return T.bitwise_and(moved, splat(plane.mask >> down, dtype))
