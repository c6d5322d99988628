"""constants.bin of an artifact: every constant at a multiple of 64 bytes, by the bits that it uses.

int8 constants whose lowest bits are all zero, as kernels without packed weights take those of few bits, are
stored without these bits and get them back when they are read (bit_planes, of rows of 64). All others lie
there as they are and are used in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmq import bit_planes
from tvmq.bit_planes import BYTE
from tvmq.manifest import ConstantEntry, nbytes
from tvmq.runtime import ALIGNMENT, aligned
from tvmq.spec import Array, Constant


def view(data: memoryview, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Return a tensor in data, without a copy."""
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)


def pack_constants(constants: Sequence[Constant]) -> tuple[tuple[ConstantEntry, ...], memoryview]:
    """Return where each constant lies, and constants.bin."""
    arena = bytearray()
    entries = []
    for constant in constants:
        arena += bytes(-len(arena) % ALIGNMENT)
        array = np.ascontiguousarray(constant.array)
        bits, stored = _stored(array)
        entry = ConstantEntry(
            name=constant.name,
            dtype=array.dtype.name,
            shape=array.shape,
            layout=constant.layout,
            logical_shape=constant.logical_shape,
            offset=len(arena),
            bits=bits,
            site=constant.site,
            weight_bits=constant.weight_bits,
        )
        entries.append(entry)
        arena += stored.tobytes()
    return tuple(entries), memoryview(arena)


def _stored(array: Array) -> tuple[int, Array]:
    """Return how many bits of each element a file stores, and these: int8 may have zeros in the lowest."""
    bits = bit_planes.bits_worth_storing(array, ALIGNMENT) if array.dtype == np.int8 else BYTE
    if bits < BYTE:
        flat = np.pad(array.ravel(), (0, -array.size % ALIGNMENT))
        return bits, bit_planes.pack(flat.reshape(-1, ALIGNMENT), bits)
    return BYTE * array.itemsize, array


def read_constants(rows: Sequence[ConstantEntry], data: memoryview) -> tuple[Constant, ...]:
    """Return the constants in constants.bin, in place where they are stored as they are."""
    return tuple(
        Constant(
            row.name, _read_constant(row, data), row.layout, row.logical_shape, row.site, row.weight_bits
        )
        for row in rows
    )


def _read_constant(row: ConstantEntry, data: memoryview) -> Array:
    size = math.prod(row.shape)
    if row.stored_bytes == nbytes(row.shape, row.dtype):
        return view(data, row.offset, row.shape, row.dtype)
    stored = view(data, row.offset, (row.stored_bytes // ALIGNMENT, ALIGNMENT), row.dtype)
    values = bit_planes.unpack(stored, row.bits, -(-size // ALIGNMENT))
    return aligned(values.ravel()[:size].reshape(row.shape))
