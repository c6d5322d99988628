"""Sizes as torch has them, and fewer groups with the same sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.passes.conv_geometry import ConvGeometry, merged


def geometry(**fields: int) -> ConvGeometry:
    plain = {"batch": 1, "rows": 9, "columns": 8, "channels": 4, "outputs": 6}
    return ConvGeometry(**{**plain, "kernel_rows": 3, "kernel_columns": 2, **fields})


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_the_size_of_the_result_is_the_operators(kernel, strides, dilation, padding):
    data, weight = (relax.Var("a", relax.TensorType(s, "float32")) for s in ((1, 4, 9, 8), (6, 4, *kernel)))
    call = relax.BlockBuilder().normalize(op.nn.conv2d(data, weight, strides, padding, dilation))
    found = ConvGeometry.of((1, 4, 9, 8), (6, 4, *kernel), call.attrs)
    assert (found.outputs, found.out_rows, found.out_columns) == tuple(int(d) for d in call.ty.shape)[1:]
    assert ConvGeometry.from_attrs(found.attrs()) == found


def test_what_is_a_product_and_what_has_weights_for_each_channel():
    assert geometry(kernel_rows=1, kernel_columns=1).pointwise
    assert not geometry(kernel_rows=1, kernel_columns=1, left=1).pointwise
    assert not geometry(kernel_rows=1, kernel_columns=1, stride_rows=2).pointwise
    assert geometry(channels=6, groups=6).depthwise
    assert not geometry(groups=4, outputs=8).depthwise


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "fewer"),
    [(12, 24, 4, 1), (32, 32, 8, 2), (64, 64, 2, 2), (9, 6, 3, 1), (8, 16, 1, 1), (32, 64, 32, 4)],
)
def test_merged_groups_fill_vectors_and_keep_the_sums(channels, outputs, groups, fewer):
    rng = np.random.default_rng(0)
    before = geometry(channels=channels, outputs=outputs, groups=groups)
    x = rng.integers(0, 256, (1, 9, 8, channels)).astype(np.uint8)
    weight = rng.integers(-127, 128, (3, 2, channels // groups, outputs)).astype(np.int8)
    after, wide = merged(before, weight)
    assert after.groups == fewer
    assert wide.shape == (3, 2, after.group_inputs, outputs)
    sums = [numerics.convolution(x, w, groups=g.groups) for w, g in ((weight, before), (wide, after))]
    np.testing.assert_array_equal(*sums)
