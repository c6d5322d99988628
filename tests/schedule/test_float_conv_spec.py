"""Vectors hold every output once, whatever the groups, and what is packed comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of
from tvmq.schedule.float_conv_spec import (
    LANES,
    FloatConvSpec,
    buffers,
    pack_float_bias,
    pack_float_conv,
    unpack_float_bias,
    unpack_float_conv,
)


def spec_of(groups: int, inputs: int, outputs: int, **fields: int) -> FloatConvSpec:
    geometry = geometry_of(groups * inputs, groups * outputs, 3, groups=groups, **fields)
    return FloatConvSpec(geometry=geometry, bias=True)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_every_output_has_one_lane_that_reads_its_own_inputs(groups: int, inputs: int, outputs: int):
    spec = spec_of(groups, inputs, outputs)
    found = [output for vector in range(spec.column_groups) for output in spec.outputs_of(vector)]
    assert found == list(range(groups * outputs))
    if spec.mixed:
        first = spec.outputs_of(0)
        for step in range(inputs):
            order = spec.order(step)
            assert max(order) < spec.span
            assert order[: len(first)] == [output // outputs * inputs + step for output in first]


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 40), st.integers(1, 2))
def test_unpacking_undoes_packing(groups: int, inputs: int, outputs: int, dilation: int):
    spec = spec_of(groups, inputs, outputs, dilation_columns=dilation)
    random = np.random.default_rng(0)
    weight = random.standard_normal((groups * outputs, inputs, 3, 3), "float32")
    packed = pack_float_conv(weight, spec)
    assert packed.shape == buffers(spec)["weight"][0]
    np.testing.assert_array_equal(unpack_float_conv(packed, weight.shape, groups), weight)
    bias = random.standard_normal((1, groups * outputs, 1, 1), "float32")
    np.testing.assert_array_equal(unpack_float_bias(pack_float_bias(bias), bias.shape), bias)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "vectors"),
    [
        (1, 64, 64, 4),
        (32, 4, 4, 8),
        (144, 1, 1, 9),
        (10, 24, 24, 20),
        (5, 3, 3, 1),
        (4, 64, 2, 4),
        (8, 1, 2, 1),
    ],
)
def test_groups_share_vectors_where_their_inputs_do(groups: int, inputs: int, outputs: int, vectors: int):
    assert spec_of(groups, inputs, outputs).column_groups == vectors


def test_pixels_are_read_where_they_lie_only_if_nothing_behind_them_is_read():
    assert spec_of(16, 1, 1).direct
    assert not spec_of(17, 1, 1).direct
    assert spec_of(17, 1, 17).direct  # whose inputs are broadcast
    assert not spec_of(16, 1, 1, top=1).direct
    assert len(pack_float_bias(np.ones(3, np.float32))) >= 2 + LANES
