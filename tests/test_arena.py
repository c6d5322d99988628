"""Constants come back from their file, which holds no bits that are zero everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.arena import pack_constants, read_constants
from tvmq.spec import Constant


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3000)), max_size=4), seeds)
def test_constants_come_back(sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = [(random.integers(-128, 128, n) & -1 << 8 - bits).astype(np.int8) for bits, n in sizes]
    arrays += [random.integers(0, 9, (3, 5)).astype(dtype) for dtype in ("uint8", "int16", "float32")]
    constants = [Constant(f"c{i}", array, "plain", array.shape) for i, array in enumerate(arrays)]
    entries, data = pack_constants(constants)
    for array, constant in zip(arrays, read_constants(entries, data), strict=True):
        assert constant.array.dtype == array.dtype
        np.testing.assert_array_equal(constant.array, array)


def test_a_file_holds_the_bits_that_are_used() -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (64, 96)).astype(np.int8)
    for bits in range(2, 9):
        used = Constant("w", weight & np.int8(-1 << 8 - bits), "linear16x4", weight.shape, "fc", bits)
        (entry,), data = pack_constants([used])
        assert (entry.bits, entry.stored_bytes) == (bits, weight.size * bits // 8)
        assert len(data) == entry.stored_bytes
        (read,) = read_constants([entry], data)
        assert (read.site, read.weight_bits) == ("fc", bits)
        assert read.array.ctypes.data % 64 == 0 or bits == 8
