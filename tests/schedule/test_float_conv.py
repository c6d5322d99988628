"""The float kernel gives the float64 convolution to within rounding, the same bits by any tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of
from tests.schedule.isa_cases import ISA, KERNEL_NAMES, built
from tests.schedule.pool import pool_of
from tvmq.schedule.conv_tiles import ConvDecision
from tvmq.schedule.float_conv import float_conv_prim_func
from tvmq.schedule.float_conv_spec import FloatConvSpec, pack_float_bias, pack_float_conv
from tvmq.schedule.float_conv_tiles import choose_float_conv


def arguments_of(spec: FloatConvSpec) -> tuple[Any, Any, Any]:
    """Return random x [pixels, channels], OIHW weights and a bias."""
    g, random = spec.geometry, np.random.default_rng(0)
    x = random.standard_normal((g.batch * g.rows * g.columns, g.channels), "float32")
    weight = random.standard_normal((g.outputs, g.group_inputs, g.kernel_rows, g.kernel_columns), "float32")
    return x, weight, random.standard_normal(g.outputs, "float32")


def run(spec: FloatConvSpec, x: Any, weight: Any, bias: Any, kernel: Any) -> Any:
    packed = [x, pack_float_conv(weight, spec), *[pack_float_bias(bias)] * spec.bias]
    out = tvm.runtime.tensor(np.full((spec.geometry.pixels, spec.geometry.outputs), 77, np.float32))
    kernel(*map(tvm.runtime.tensor, packed), out)
    return out.numpy()


def exact(spec: FloatConvSpec, x: Any, weight: Any, bias: Any) -> Any:
    """Return the sums in float64 [pixels, outputs]."""
    g = spec.geometry
    image = torch.from_numpy(x.reshape(g.batch, g.rows, g.columns, g.channels)).double().permute(0, 3, 1, 2)
    image = torch.nn.functional.pad(image, (g.left, g.right, g.top, g.bottom))
    strides, steps = (g.stride_rows, g.stride_columns), (g.dilation_rows, g.dilation_columns)
    own = torch.from_numpy(weight).double()
    sums = torch.nn.functional.conv2d(image, own, None, strides, 0, steps, g.groups)
    return sums.permute(0, 2, 3, 1).reshape(g.pixels, g.outputs).numpy() + bias * spec.bias


def check(spec: FloatConvSpec, isa: str, threads: int = 1) -> None:
    x, weight, bias = arguments_of(spec)
    kernel = built(float_conv_prim_func(spec, choose_float_conv(spec, ISA[isa], threads), ISA[isa]), isa)
    found, wanted = run(spec, x, weight, bias, kernel), exact(spec, x, weight, bias)
    magnitude = exact(spec, np.abs(x), np.abs(weight), np.abs(bias))
    if spec.low is not None or spec.high is not None:
        wanted = np.clip(wanted, spec.low, spec.high)
    assert (np.abs(found - wanted) <= (weight[0].size + 2) * 2.0**-23 * magnitude).all()


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@settings(max_examples=6, deadline=None)
@given(
    group=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    groups=st.sampled_from([1, 1, 2, 5, 16]),
    kernel=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    bias=st.booleans(),
    limits=st.sampled_from([(None, None), (0.0, None), (0.0, 6.0), (None, 1.5)]),
    threads=st.sampled_from([1, 2, 3]),
)
@example((8, 33), 1, 1, (1, 1), (1, 1), (0, 0, 0, 0), True, (0.0, None), 1)  # all pixels are one line
@example((3, 17), 1, 3, (2, 2), (1, 1), (1, 1, 1, 1), False, (None, None), 2)  # the first layer of a network
@example((1, 1), 37, 3, (1, 1), (1, 1), (1, 1, 1, 1), True, (0.0, 6.0), 2)  # depthwise
@example((1, 1), 2, 1, (1, 1), (1, 1), (0, 0, 0, 0), False, (None, None), 1)  # fewer inputs than lanes
@example((2, 4), 5, 2, (1, 1), (1, 1), (0, 1, 0, 1), True, (None, None), 1)
@example((4, 4), 32, 3, (2, 2), (1, 1), (1, 1, 1, 1), True, (None, None), 1)  # of ResNeXt
@example((24, 24), 3, 3, (1, 1), (1, 2), (0, 2, 0, 1), True, (None, None), 1)  # of RegNet
def test_any_window_is_within_rounding(
    isa, group, groups, kernel, strides, dilation, padding, bias, limits, threads
):
    names = ("stride_rows", "stride_columns", "dilation_rows", "dilation_columns")
    fields = dict(
        zip((*names, "top", "left", "bottom", "right"), (*strides, *dilation, *padding), strict=True)
    )
    geometry = geometry_of(groups * group[0], groups * group[1], kernel, groups=groups, **fields)
    check(FloatConvSpec(geometry=geometry, bias=bias, low=limits[0], high=limits[1]), isa, threads)


@pytest.mark.isa("avx2", "fma")
@pytest.mark.parametrize("groups", [1, 2, 24])
def test_neither_tiles_nor_threads_change_a_bit(groups):
    geometry = geometry_of(48, 96, 3, groups=groups, top=1, left=1)
    spec = FloatConvSpec(geometry=geometry, bias=True, low=0.0)
    x, weight, bias = arguments_of(spec)
    decisions = [
        ConvDecision(pixel_tile=1, column_tile=1),
        ConvDecision(pixel_tile=4, column_tile=1, outer="rows", bands=3, prefetch=True),
        ConvDecision(pixel_tile=2, column_tile=3, bands=2, parts=2, parallel=True),
    ]
    found = []
    with pool_of(2):
        for decision in decisions:
            kernel = built(float_conv_prim_func(spec, decision, ISA["avx2"]), "avx2")
            found.append(run(spec, x, weight, bias, kernel))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.isa("avx2")
def test_what_is_not_finite_stays_in_its_group():
    geometry = geometry_of(16, 16, 1, groups=4)
    spec = FloatConvSpec(geometry=geometry)
    x, weight, bias = arguments_of(spec)
    x[:, 5] = np.inf
    kernel = built(float_conv_prim_func(spec, choose_float_conv(spec, ISA["avx2"], 1), ISA["avx2"]), "avx2")
    finite = np.isfinite(run(spec, x, weight, bias, kernel)).all(axis=0)
    np.testing.assert_array_equal(finite, [True] * 4 + [False] * 4 + [True] * 8)


def test_tiles_larger_than_the_result_are_refused():
    spec = FloatConvSpec(geometry=geometry_of(8, 64, 3, groups=2))
    for decision in (ConvDecision(pixel_tile=6, column_tile=1), ConvDecision(pixel_tile=1, column_tile=4)):
        with pytest.raises(ValueError, match="more than a line and a group"):
            float_conv_prim_func(spec, decision, ISA["avx2"])
