"""Chunks cover all channels, and packed values follow the order of the sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of, spec_of
from tests.schedule.isa_cases import ISA
from tvmq.schedule.depthwise_spec import (
    Chunk,
    buffers,
    chunks,
    pack_channels,
    pack_weight,
    packed_channels,
    supports,
    unpack_channels,
    unpack_weight,
)


@given(st.integers(16, 300), st.sampled_from([16, 32, 64]))
def test_chunks_cover_every_channel_and_lie_side_by_side(channels, widest):
    found = list(chunks(channels, widest))
    covered = {c for chunk in found for c in range(chunk.start, chunk.start + chunk.width)}
    assert covered == set(range(channels))
    assert [c.place for c in found] == [sum(d.width for d in found[:i]) for i in range(len(found))]
    assert sum(c.width for c in found) == packed_channels(channels)


def test_the_last_channels_are_computed_with_others_again():
    assert list(chunks(120, 64)) == [
        Chunk(0, 64, 0), Chunk(64, 32, 64), Chunk(96, 16, 96), Chunk(104, 16, 112)
    ]  # fmt: skip


@pytest.mark.parametrize("widest", [16, 64])
def test_a_vector_holds_every_fourth_channel(widest):
    values = np.arange(72)
    packed = pack_channels(values, widest)
    assert list(packed[:4]) == [0, 4, 8, 12]
    assert packed[widest // 4] == 1
    np.testing.assert_array_equal(unpack_channels(packed, values.shape, widest), values)
    weight = np.arange(5 * 3 * 72).astype(np.int8).reshape(5, 3, 1, 72)
    rows = pack_weight(weight, widest)
    np.testing.assert_array_equal(rows[:8], np.concatenate([weight[:4, 0, 0, 0], weight[:4, 0, 0, 4]]))
    np.testing.assert_array_equal(unpack_weight(rows, weight.shape, widest), weight)
    spec = spec_of(geometry_of(72, 72, 5, groups=72, columns=9, kernel_columns=3), "uint8")
    assert buffers(spec, ISA["sse4"])["weight"] == (rows.shape, "int8")


def test_few_channels_and_wide_windows_have_no_kernel():
    assert "15 channels" in (supports(spec_of(geometry_of(15, 15, 3, groups=15), "uint8")) or "")
    wide = geometry_of(16, 16, 1, groups=16, columns=20, kernel_columns=12)
    assert "12 kernel columns" in (supports(spec_of(wide, "uint8")) or "")
