"""Weights of 2 to 7 bits, packed so that a few shifts and masks give a kernel its registers of bytes back.

A weight of b bits is the highest b bits of an int8, the others zero: what it multiplies comes out 2**(8 - b)
times too large, which the shift of the requantize takes out again. The bits are cut into planes whose widths
divide 8, the highest first: 4 is one plane of 4, 3 is a plane of 2 and one of 1. Where a byte held the weight
of one step of a kernel, a byte of a plane of p bits holds those of 8/p steps in turn, the first in its
highest bits:

    [..., steps, 64]  ->  [..., ceil(steps * p / 8), 64], one plane after the other
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BYTE = 8
WIDTHS = (4, 2, 1)

Int8s = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of every weight."""

    width: int
    above: int  # bits of the weight in earlier planes

    @property
    def per_byte(self) -> int:
        """Steps that share a byte."""
        return BYTE // self.width

    @property
    def mask(self) -> int:
        """Return where its bits are in a weight."""
        return ((1 << self.width) - 1) << (BYTE - self.above - self.width)

    def registers(self, steps: int) -> int:
        """Return the vectors that so many steps take."""
        return -(-steps // self.per_byte)


def planes(bits: int) -> tuple[Plane, ...]:
    """Return the planes of weights of so many bits; of 8, one that holds them as they are."""
    if bits == BYTE:
        return (Plane(BYTE, 0),)
    found: list[Plane] = []
    for width in WIDTHS:
        above = sum(plane.width for plane in found)
        found += [Plane(width, above)] if bits - above >= width else []
    return tuple(found)


def registers(bits: int, steps: int) -> int:
    """Return the vectors that the weights of so many steps take."""
    return sum(plane.registers(steps) for plane in planes(bits))


def block_steps(bits: int) -> int:
    """Return after how many steps every plane begins a new byte."""
    return max(plane.per_byte for plane in planes(bits))


def bits_worth_storing(weights: Int8s, row: int) -> int:
    """Return how many of the highest bits of weights to store, in rows of so many; 8 where that is best."""
    used = int(np.bitwise_or.reduce(np.ascontiguousarray(weights).view(np.uint8), axis=None))
    bits = max(2, BYTE + 1 - (used & -used).bit_length()) if used else 2
    return bits if bits < BYTE and stored_size(bits, weights.size, row) < weights.size else BYTE


def stored_size(bits: int, count: int, row: int) -> int:
    """Return the bytes that so many weights take as rows of planes, the last one filled up."""
    return registers(bits, -(-count // row)) * row


def pack(weights: Int8s, bits: int) -> Int8s:
    """Return int8 [..., steps, n] as [..., registers, n]; ValueError where one has more than `bits` bits."""
    if bits == BYTE:
        return weights
    values = np.ascontiguousarray(weights).view(np.uint8)
    if np.bitwise_or.reduce(values, axis=None) % (1 << (BYTE - bits)):
        raise ValueError(f"pack: weights of {bits} bits are multiples of {1 << BYTE - bits}")
    packed = []
    for plane in planes(bits):
        per_byte, steps = plane.per_byte, values.shape[-2]
        missing = [(0, 0)] * (values.ndim - 2) + [(0, -steps % per_byte), (0, 0)]
        parts = np.pad((values & plane.mask) << plane.above, missing)
        parts = parts.reshape(*values.shape[:-2], -1, per_byte, values.shape[-1])
        moved = parts >> (plane.width * np.arange(per_byte, dtype=np.uint8))[:, None]
        packed.append(np.bitwise_or.reduce(moved, axis=-2))
    return np.concatenate(packed, axis=-2).view(np.int8)


def unpack(packed: Int8s, bits: int, steps: int) -> Int8s:
    """Return int8 [..., steps, n], the inverse of pack."""
    if bits == BYTE:
        return packed
    data = np.ascontiguousarray(packed).view(np.uint8)
    values = np.zeros((*data.shape[:-2], steps, data.shape[-1]), np.uint8)
    first = 0
    for plane in planes(bits):
        count = plane.registers(steps)
        parts = data[..., first : first + count, None, :]
        moved = parts << (plane.width * np.arange(plane.per_byte, dtype=np.uint8))[:, None]
        moved = moved.reshape(*values.shape[:-2], -1, values.shape[-1])[..., :steps, :]
        values |= (moved >> plane.above) & plane.mask
        first += count
    return values.view(np.int8)


def places(bits: int, steps: int, step: int) -> Iterator[tuple[Plane, int, int, int]]:
    """Yield where each plane has one step of a block.

    That is: the plane, the first of its vectors, how many further on this one is, and the place in its bytes.
    steps: all there are, in whole blocks of block_steps and a rest; step: of its block.
    """
    first = 0
    for plane in planes(bits):
        yield plane, first, step // plane.per_byte, step % plane.per_byte
        first += plane.registers(steps)
