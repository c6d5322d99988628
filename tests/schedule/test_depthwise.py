"""The depthwise kernels equal numerics bit for bit, for any window, epilogue and number of channels."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.conv_cases import EPILOGUES, check, compiled, geometry_of, spec_of
from tests.schedule.isa_cases import ISA, KERNEL_NAMES, with_long_code_slow
from tests.schedule.pool import pool_of
from tvmq.schedule.depthwise import DepthwiseDecision, choose_depthwise, depthwise_prim_func


@pytest.mark.parametrize("isa", with_long_code_slow(KERNEL_NAMES))
@settings(max_examples=2, deadline=None)
@given(
    channels=st.integers(16, 150),
    kernel=st.integers(1, 5),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    epilogue=st.sampled_from(sorted(EPILOGUES)),
)
@example(96, 3, (1, 1), (1, 1), (1, 1, 1, 1), "uint8")  # a wide chunk and a narrow one
@example(40, 3, (2, 2), (1, 1), (1, 1, 1, 1), "trunk")  # the last 16 channels overlap others
@example(64, 5, (1, 1), (1, 1), (2, 2, 2, 2), "table")  # two times four rows
def test_any_window_is_exact(isa, channels, kernel, strides, dilation, padding, epilogue):
    names = ("stride_rows", "stride_columns", "dilation_rows", "dilation_columns")
    fields = dict(
        zip((*names, "top", "left", "bottom", "right"), (*strides, *dilation, *padding), strict=True)
    )
    geometry = geometry_of(channels, channels, kernel, groups=channels, rows=12, columns=13, **fields)
    spec = spec_of(geometry, epilogue)
    check(compiled(spec, isa), spec, isa)


@pytest.mark.isa("avx512_vnni")
@pytest.mark.parametrize(
    "decision", [DepthwiseDecision(tile=7), DepthwiseDecision(tile=2, bands=5, parallel=True)]
)
def test_every_decision_gives_the_same_bytes(decision):
    geometry = geometry_of(24, 24, 3, groups=24, columns=30, top=1, left=1, bottom=1, right=1)
    spec = spec_of(geometry, "int8")
    with pool_of(2):
        check(compiled(spec, "avx512_vnni", decision), spec, "avx512_vnni")


def test_threads_share_the_lines_of_work_that_is_worth_it():
    isa = ISA["avx2"]
    spec = spec_of(geometry_of(64, 64, 3, groups=64, rows=50, columns=50, batch=1), "uint8")
    assert not choose_depthwise(spec, isa, 1).parallel
    found = choose_depthwise(spec, isa, 2)
    assert found.parallel
    assert found.bands % 2 == 0
    assert not choose_depthwise(spec_of(geometry_of(64, 64, 3, groups=64), "uint8"), isa, 2).parallel


def test_what_it_cannot_build_has_a_reason():
    spec = spec_of(geometry_of(6, 6, 3, groups=6), "uint8")
    with pytest.raises(ValueError, match="6 channels"):
        depthwise_prim_func(spec, DepthwiseDecision(tile=4), ISA["avx512_vnni"])
