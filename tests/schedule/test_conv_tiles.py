"""Tiles divide what they can, stay in registers, and give threads equal work."""

from __future__ import annotations

import pytest

from tests.schedule.conv_cases import geometry_of, spec_of
from tests.schedule.isa_cases import ISA
from tvmq.schedule.conv_tiles import ConvDecision, Extents, choose_conv, conv_space, fits, step_groups
from tvmq.schedule.dots import most_groups

VNNI = ISA["avx512_vnni"]


@pytest.mark.parametrize("columns", [7, 14, 28, 56])
def test_tiles_of_usual_images_waste_nothing(columns):
    padded = {"top": 1, "left": 1, "bottom": 1, "right": 1}
    spec = spec_of(geometry_of(64, 128, 3, batch=1, rows=columns, columns=columns, **padded), "uint8")
    found = choose_conv(spec, VNNI, 1)
    assert columns % found.pixel_tile == 0
    assert 8 % found.column_tile == 0
    assert found.pixel_tile * found.column_tile >= 8
    assert not found.parallel


@pytest.mark.parametrize("isa", sorted(ISA))
def test_sums_stay_in_registers(isa):
    spec = spec_of(geometry_of(16, 70, 3), "table")
    found = choose_conv(spec, ISA[isa], 1)
    assert found.pixel_tile * found.column_tile <= most_groups(ISA[isa])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_get_equal_shares(threads):
    spec = spec_of(geometry_of(64, 256, 3, batch=1, rows=26, columns=26), "uint8")
    found = choose_conv(spec, VNNI, threads)
    extents = Extents.of(spec, found.pixel_tile, found.column_tile)
    assert found.parallel
    units = found.bands * found.parts
    lines, columns = -(-extents.lines // found.bands), -(-extents.columns // found.parts)
    rounds = -(-units // threads)
    assert rounds * lines * columns * threads <= 1.15 * extents.lines * extents.columns


def test_only_weights_that_leave_the_cache_are_prefetched():
    assert not choose_conv(spec_of(geometry_of(16, 64, 3), "uint8"), VNNI, 1).prefetch
    assert choose_conv(spec_of(geometry_of(256, 256, 3), "uint8"), VNNI, 1).prefetch


def test_column_tiles_stay_inside_of_a_group():
    spec = spec_of(geometry_of(64, 96, 3, groups=2), "uint8")
    assert [columns for columns in (1, 2, 3, 4) if fits(spec, columns)] == [1, 3]
    assert choose_conv(spec, VNNI, 1).column_tile in (1, 3)


def test_a_space_holds_its_default_and_only_what_fits_registers():
    spec = spec_of(geometry_of(64, 128, 3), "table")
    space = conv_space(spec, VNNI, 2)
    assert space.default in space
    assert {**space.default, "pixel_tile": 7, "column_tile": 4} not in space
    assert step_groups(spec, VNNI, 4) == 4
    assert step_groups(spec, VNNI, 2) == 1


def test_decisions_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="outer is 'lines'"):
        ConvDecision(pixel_tile=1, column_tile=1, outer="lines")
    with pytest.raises(ValueError, match="at least 1"):
        ConvDecision(pixel_tile=0, column_tile=1)


@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(16, 96, 112), (96, 24, 56), (144, 32, 28)])
def test_sums_leave_registers_for_what_is_multiplied_and_are_few_where_the_epilogue_is_most(
    inputs, outputs, rows
):
    """These of MobileNetV2 took up to twice as long by 24 sums."""
    found = choose_conv(
        spec_of(geometry_of(inputs, outputs, 1, batch=1, rows=rows, columns=rows), "uint8"), VNNI, 1
    )
    assert found.pixel_tile * found.column_tile <= 8


@pytest.mark.parametrize(("kernel", "rows", "batch"), [(3, 4, 2), (1, 2, 8)])
def test_small_work_wakes_no_other_thread_though_a_batch_is_several_units(kernel, rows, batch):
    spec = spec_of(geometry_of(16, 16, kernel, batch=batch, rows=rows, columns=rows), "uint8")
    assert not choose_conv(spec, VNNI, 2).parallel
