"""The blocks that come first are those that no uint8 input makes saturate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq.schedule.linear_spec import pack_weight
from tvmq.schedule.saturation import BLOCK, INDEX, pack_sorted, row_bytes, unpack_sorted


@given(
    blocks=st.integers(1, 40),
    outputs=st.integers(1, 70),
    largest=st.sampled_from([1, 64, 70, 127]),
    seed=st.integers(0, 99),
)
def test_packing_has_a_way_back(blocks: int, outputs: int, largest: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-largest, largest + 1, (4 * blocks, outputs)).astype("int8")
    packed = pack_sorted(weight)
    assert packed.shape == (-(-outputs // 16), row_bytes(4 * blocks))
    np.testing.assert_array_equal(unpack_sorted(packed, 4 * blocks, outputs), weight)


@pytest.mark.parametrize(
    ("pair", "exact"),
    [
        ((64, 64), 1), ((65, 64), 0), ((-64, -64), 1), ((-65, -64), 0), ((127, -128), 1), ((127, 1), 1),
        ((-128, -1), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 2])  # bytes 1 and 2 are not added
def test_a_block_is_exact_where_the_largest_input_does_not_saturate(
    pair: tuple[int, int], exact: int, place: int
) -> None:
    largest = max(255 * sum(max(w, 0) for w in pair), -255 * sum(min(w, 0) for w in pair) - 1)
    assert (largest < 2**15) == exact
    weight = np.zeros((8, 16), "int8")
    weight[4 + place : 6 + place, 3] = pair  # the second of two blocks
    packed = pack_sorted(weight)
    index = packed[0, 2 * BLOCK : 2 * BLOCK + 3 * INDEX].view("<u2")
    assert index.tolist() == [0, 1, 1 + exact]


def test_blocks_are_sorted_and_the_rest_is_zeros() -> None:
    weight = np.zeros((12, 16), "int8")
    weight[0:2, 0] = 127
    packed = pack_sorted(weight)
    assert packed[0, 3 * BLOCK :].view("<u2").tolist()[:4] == [1, 2, 0, 2]
    np.testing.assert_array_equal(packed[0, 2 * BLOCK : 3 * BLOCK], pack_weight(weight)[0, 0].ravel())
    assert not packed[0, 3 * BLOCK + 4 * INDEX :].any()
