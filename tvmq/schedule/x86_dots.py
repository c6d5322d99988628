"""Dots of four bytes for kernels written statement by statement; `x86_intrinsics` has them for schedules.

Operands are vectors of one register of an Isa: N sums int32, N times four uint8 that share a register, and N
times four int8. `activations` and `weights` do once what several dots share.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.bit_planes import Plane
from tvmq.schedule.vectors import Expr, lanes, splat
from tvmq.schedule.x86_intrinsics import pmaddubsw, pmaddwd, vpdpbusd
from tvmq.schedule.x86_isa import Isa

# Groups of 16 sums that a tile may hold without spilling, by (bits, vnni).
REGISTERS = {(512, True): 24, (512, False): 20, (256, True): 6, (256, False): 4, (128, False): 2}


def activations(isa: Isa, words: Expr) -> Any:
    """Return int32xN, four uint8 each, as dot takes them."""
    if isa.vnni:
        return T.bind(T.reinterpret(f"uint8x{4 * lanes(words)}", words))
    pairs, words16 = (f"{kind}16x{2 * lanes(words)}" for kind in ("uint", "int"))
    both = T.bind(T.reinterpret(pairs, words))
    even = T.bitwise_and(both, splat(255, pairs))
    odd = T.shift_right(both, splat(8, pairs))
    return [T.bind(T.reinterpret(words16, part)) for part in (even, odd)]


def weights(isa: Isa, values: Expr) -> Any:
    """Return int8x4N as dot takes them."""
    if isa.vnni:
        return T.bind(values)
    words = f"int16x{lanes(values) // 2}"
    both, byte = T.bind(T.reinterpret(words, values)), splat(8, words)
    return [T.bind(T.shift_right(T.shift_left(both, byte), byte)), T.bind(T.shift_right(both, byte))]


def dot(isa: Isa, total: Expr, activation: Any, weight: Any) -> Expr:
    """Return int32xN total plus N dots of four."""
    if isa.vnni:
        return vpdpbusd(isa, total, activation, weight)
    # Even and odd bytes as pairs of int16: no sum leaves its lane, and none of two products leaves int32.
    even, odd = (pmaddwd(isa, a, w) for a, w in zip(activation, weight, strict=True))
    return total + (even + odd)


def saturating_dot(isa: Isa, total: Expr, words: Expr, values: Expr) -> Expr:
    """Return int32xN total plus N dots of four, exact where `saturation` says so, without vpdpbusd."""
    pairs = pmaddubsw(isa, T.reinterpret(f"uint8x{4 * lanes(words)}", words), values)
    return total + pmaddwd(isa, pairs, splat(1, f"int16x{2 * lanes(words)}"))


def part_of_weight(plane: Plane, place: int, stored: Expr) -> Expr:
    """Return the bits that a vector of uint8 stores at one place of its bytes, moved to those of a weight."""
    dtype = f"uint8x{lanes(stored)}"
    left = place * plane.width - plane.above
    moved = stored
    if left > 0:
        moved = T.shift_left(stored, splat(left, dtype))
    elif left < 0:
        moved = T.shift_right(stored, splat(-left, dtype))
    return T.bitwise_and(moved, splat(plane.mask, dtype))
