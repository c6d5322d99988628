"""Tiles stay in registers and inside of a group; images are cut where they leave the cache."""

from __future__ import annotations

import pytest

from tests.schedule.conv_cases import geometry_of
from tests.schedule.isa_cases import ISA
from tvmq.schedule.conv_tiles import Extents
from tvmq.schedule.float_conv_spec import FloatConvSpec
from tvmq.schedule.float_conv_tiles import choose_float_conv, fits, float_conv_space, stays

WIDE = ISA["avx512_vnni"]


def square(pixels: int, channels: int, outputs: int, kernel: int, groups: int = 1) -> FloatConvSpec:
    edges = dict.fromkeys(("top", "left", "bottom", "right"), kernel // 2)
    sizes = {"batch": 1, "rows": pixels, "columns": pixels, "groups": groups}
    return FloatConvSpec(geometry=geometry_of(channels, outputs, kernel, **sizes, **edges))


@pytest.mark.parametrize("isa", sorted(ISA))
@pytest.mark.parametrize("groups", [1, 2, 8, 32])
def test_sums_stay_in_registers_and_the_default_is_in_its_space(isa, groups):
    spec = square(14, 64, 96, 3, groups)
    found = choose_float_conv(spec, ISA[isa], 2)
    assert stays(spec, ISA[isa], found.pixel_tile, found.column_tile)
    assert fits(spec, found.column_tile)
    space = float_conv_space(spec, ISA[isa], 2)
    assert {**space.default, "pixel_tile": 14, "column_tile": 4} not in space


def test_a_tile_leaves_registers_for_weights_and_inputs():
    """3 x 2 of 16 registers took 3 times as long as 6 x 1: two weights, or three inputs, wait for use."""
    spec = square(28, 128, 512, 1)
    assert stays(spec, ISA["avx2"], 6, 1)
    assert not stays(spec, ISA["avx2"], 3, 2)
    assert stays(spec, WIDE, 7, 2)
    assert not stays(square(28, 64, 64, 3, 64), WIDE, 7, 2)


@pytest.mark.parametrize("pixels", [7, 14, 28, 56])
def test_tiles_of_usual_images_waste_nothing(pixels):
    found = choose_float_conv(square(pixels, 64, 128, 3), WIDE, 1)
    assert pixels % found.pixel_tile == 0
    assert found.pixel_tile * found.column_tile >= 12


def test_an_image_that_leaves_the_cache_is_cut_and_one_whose_weights_are_most_is_not():
    assert choose_float_conv(square(56, 64, 64, 3), WIDE, 1).bands > 1
    assert choose_float_conv(square(7, 512, 512, 3), WIDE, 1).bands == 1


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_get_equal_shares(threads):
    spec = square(26, 64, 256, 3)
    found = choose_float_conv(spec, WIDE, threads)
    extents = Extents.of(spec, found.pixel_tile, found.column_tile)
    assert found.parallel
    units = found.bands * found.parts
    work = -(-extents.lines // found.bands) * -(-extents.columns // found.parts)
    assert -(-units // threads) * work * threads <= 1.15 * extents.lines * extents.columns


def test_a_small_convolution_wakes_no_thread():
    assert not choose_float_conv(square(4, 16, 16, 1), WIDE, 8).parallel
