"""Packed weights can be unpacked; what a kernel cannot compute is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule.linear_cases import SMALL
from tvmq.schedule.linear_spec import pack_weight, pad_channels, supports, unpack_weight


@given(inputs=st.integers(1, 20).map(lambda k: 4 * k), outputs=st.integers(1, 70), seed=st.integers(0, 99))
def test_packing_has_a_way_back(inputs: int, outputs: int, seed: int) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, (inputs, outputs)).astype("int8")
    packed = pack_weight(weight)
    assert packed.shape == (-(-outputs // 16), inputs // 4, 16, 4)
    np.testing.assert_array_equal(unpack_weight(packed, inputs, outputs), weight)
    assert np.count_nonzero(packed) == np.count_nonzero(weight)  # the padding is zeros


def test_padded_channels_repeat_the_last_one() -> None:
    np.testing.assert_array_equal(pad_channels(np.array([3, 5], "int32"), 4), [3, 5, 5, 5])


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(SMALL) is None
    odd = replace(SMALL, inputs=6)
    assert supports(odd) == "6 inputs are not a multiple of 4, which one instruction multiplies"
    with pytest.raises(ValueError, match="a table takes uint8"):
        replace(SMALL, out_dtype="int8", table=True)
