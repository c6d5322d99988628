"""Packed weights take the bits that they have, and registers of them come back from shifts and masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.bit_planes import block_steps, pack, places, planes, registers, unpack
from tvmq.formats import PACKED_BITS


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(1, 3), seeds)
def test_packing_has_a_way_back(bits: int, steps: int, segments: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-128, 128, (segments, steps, 64)).astype(np.int8)
    values &= np.int8(-1 << 8 - bits)
    packed = pack(values, bits)
    assert packed.shape == (segments, registers(bits, steps), 64)
    assert steps % block_steps(bits) or packed.nbytes * 8 == values.nbytes * bits
    np.testing.assert_array_equal(unpack(packed, bits, steps), values)


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_places_find_every_bit_of_every_weight(bits: int) -> None:
    steps = 2 * block_steps(bits) + 1
    values = (np.arange(steps * 64).reshape(steps, 64) << 8 - bits).astype(np.int8)
    packed, block = pack(values, bits).view(np.uint8), block_steps(bits)
    for step in range(steps):
        weight = np.zeros(64, np.uint8)
        for plane, first, vector, place in places(bits, steps, step % block):
            stored = packed[first + step // block * (block // plane.per_byte) + vector]
            weight |= (stored << place * plane.width >> plane.above) & np.uint8(plane.mask)
        np.testing.assert_array_equal(weight.view(np.int8), values[step])


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes_share_out_the_bits(bits: int) -> None:
    found = planes(bits)
    assert sum(plane.width for plane in found) == bits
    assert sum(plane.mask for plane in found) == 256 - (1 << 8 - bits)


def test_weights_of_more_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="weights of 4 bits are multiples of 16"):
        pack(np.full((1, 64), 8, np.int8), 4)
