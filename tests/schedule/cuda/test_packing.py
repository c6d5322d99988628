"""Constants of GPU kernels come back from their layouts as they went in."""

from __future__ import annotations

import numpy as np
import pytest

from tvmq.schedule.cuda.packing import (
    pack_channels,
    pack_nibbles,
    pack_product,
    pack_taps,
    unpack_product,
    unpack_taps,
)
from tvmq.schedule.packing import unpack


@pytest.mark.parametrize(
    ("shape", "groups"), [((7, 5), 1), ((64, 32), 1), ((3, 3, 4, 40), 1), ((2, 3, 16, 24), 3)]
)
def test_products_come_back(shape: tuple[int, ...], groups: int):
    weight = np.random.default_rng(0).integers(-128, 128, shape).astype("int8")
    packed = pack_product(weight, groups)
    assert packed.shape[1] % 32 == packed.shape[2] % 64 == 0
    np.testing.assert_array_equal(unpack_product(packed, shape), weight)
    np.testing.assert_array_equal(unpack(packed, "cuda_product", shape), weight)


@pytest.mark.parametrize(("layout", "run"), [("cuda_product_rows", 21), ("cuda_product_taps", 3)])
def test_what_lies_together_of_a_window_takes_a_multiple_of_8(layout: str, run: int):
    weight = np.random.default_rng(0).integers(-128, 128, (5, 7, 3, 20)).astype("int8")
    packed = pack_product(weight, run=run)
    pitch = -(-run // 8) * 8
    assert packed.shape == (1, 32, -(-105 // run * pitch // 64) * 64)
    assert not packed[:, :, run:pitch].any()
    np.testing.assert_array_equal(unpack(packed, layout, weight.shape), weight)


@pytest.mark.parametrize(
    ("layout", "run"), [("cuda_product", None), ("cuda_product_rows", 21), ("cuda_product_taps", 3)]
)
def test_weights_of_four_bits_share_bytes_and_come_back(layout: str, run: int | None):
    weight = np.random.default_rng(0).integers(-8, 8, (5, 7, 3, 20)).astype("int8") * np.int8(16)
    bytes_each = pack_product(weight, run=run)
    packed = pack_nibbles(bytes_each)
    assert packed.nbytes * 2 == bytes_each.nbytes
    # Nibbles 2 i and 2 i + 1 of a lane's word are 16 apart in the depth, as in two words of x.
    first = packed[0, 0, :16].view(np.uint8)
    np.testing.assert_array_equal(first << 4, bytes_each[0, 0, :16].view(np.uint8))
    np.testing.assert_array_equal(first & 0xF0, bytes_each[0, 0, 16:32].view(np.uint8))
    np.testing.assert_array_equal(unpack(packed, f"{layout}_w4", weight.shape), weight)
    with pytest.raises(ValueError, match="multiples of 16"):
        pack_nibbles(bytes_each + np.int8(8))


def test_a_thread_comes_to_hold_neighbouring_outputs():
    outputs = np.arange(32).astype("int8")[None]
    lines = pack_product(outputs)[0, :, 0]
    for t in range(4):
        assert [lines[8 * j + 2 * t + e] for j in range(4) for e in range(2)] == list(range(8 * t, 8 * t + 8))


def test_taps_and_channels_come_back():
    taps = np.random.default_rng(0).integers(-128, 128, (3, 2, 1, 7)).astype("int8")
    assert pack_taps(taps).shape == (6, 8)
    np.testing.assert_array_equal(unpack_taps(pack_taps(taps), taps.shape), taps)
    values = np.arange(33)
    assert len(pack_channels(values)) == 64
    assert pack_channels(values)[-1] == 32
    np.testing.assert_array_equal(unpack(pack_channels(values), "cuda_channels", (33,)), values)
