"""The convolution kernels equal numerics bit for bit, for any window, epilogue and tile."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.conv_cases import EPILOGUES, check, compiled, geometry_of, spec_of
from tests.schedule.isa_cases import ISA, KERNEL_NAMES, marked
from tests.schedule.pool import pool_of
from tvmq.formats import PACKED_BITS
from tvmq.schedule.conv import conv_prim_func
from tvmq.schedule.conv_tiles import ConvDecision, choose_conv

NAMES = [*KERNEL_NAMES, marked("i8mm", slow=True)]
paddings = st.tuples(*[st.integers(0, 2)] * 4)


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=5, deadline=None)
@given(
    channels=st.integers(1, 20),
    outputs=st.integers(1, 70),
    kernel=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=paddings,
    epilogue=st.sampled_from(sorted(EPILOGUES)),
    threads=st.sampled_from([1, 2, 3]),
)
@example(8, 33, 1, (1, 1), (1, 1), (0, 0, 0, 0), "trunk", 1)  # all pixels are one line
@example(8, 64, 1, (2, 2), (1, 1), (0, 0, 0, 0), "table", 1)  # read where it lies, with strides
@example(3, 17, 3, (2, 2), (1, 1), (1, 1, 1, 1), "uint8", 2)  # the first layer of a network
def test_any_window_is_exact(isa, channels, outputs, kernel, strides, dilation, padding, epilogue, threads):
    names = ("stride_rows", "stride_columns", "dilation_rows", "dilation_columns")
    fields = dict(
        zip((*names, "top", "left", "bottom", "right"), (*strides, *dilation, *padding), strict=True)
    )
    spec = spec_of(geometry_of(channels, outputs, kernel, **fields), epilogue)
    check(compiled(spec, isa, threads=threads), spec, isa)


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=4, deadline=None)
@given(
    bits=st.sampled_from(PACKED_BITS),
    channels=st.integers(1, 80),
    outputs=st.integers(1, 70),
    kernel=st.sampled_from([1, 3]),
    dilation=st.integers(1, 2),
    epilogue=st.sampled_from(sorted(EPILOGUES)),
    threads=st.sampled_from([1, 2]),
)
@example(4, 64, 33, 1, 1, "trunk", 1)  # whole blocks of steps
@example(3, 4, 1, 1, 1, "uint8", 1)  # less than one
@example(3, 44, 16, 1, 1, "table", 2)  # one and a rest
@example(4, 5, 20, 3, 2, "fixed point", 2)  # taps whose last step is filled up
@example(2, 128, 70, 3, 1, "float32", 2)
def test_weights_that_share_bytes_are_exact(
    isa, bits, channels, outputs, kernel, dilation, epilogue, threads
):
    edges = dict.fromkeys(("top", "left", "bottom", "right"), kernel // 2)
    geometry = geometry_of(channels, outputs, kernel, dilation_columns=dilation, **edges)
    spec = spec_of(geometry, epilogue, weight_bits=bits)
    check(compiled(spec, isa, threads=threads), spec, isa)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("rows", [1, 5, 197])
def test_a_product_of_packed_weights_is_exact_on_any_threads(isa, rows, threads):
    spec = spec_of(geometry_of(68, 200, 1, batch=1, rows=1, columns=rows), "uint8", weight_bits=4)
    with pool_of(threads):
        check(compiled(spec, isa, threads=2), spec, isa)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize(("channels", "outputs"), [(32, 64), (12, 32)])
def test_groups_see_their_own_channels(isa, channels, outputs):
    geometry = geometry_of(channels, outputs, 3, groups=2, top=1, left=1, dilation_columns=2)
    spec = spec_of(geometry, "uint8")
    check(compiled(spec, isa), spec, isa)


@pytest.mark.isa("avx512_vnni")
@pytest.mark.parametrize(
    "fields",
    [
        {"pixel_tile": 1, "column_tile": 1},
        {"pixel_tile": 5, "column_tile": 4, "outer": "rows"},
        {"pixel_tile": 7, "column_tile": 3, "prefetch": True},
        {"pixel_tile": 4, "column_tile": 2, "bands": 4, "parts": 3, "parallel": True},
        {"pixel_tile": 4, "column_tile": 1, "bands": 20, "parts": 9, "parallel": True},
    ],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_decision_gives_the_same_bytes(fields, kernel):
    spec = spec_of(geometry_of(8, 70, kernel, columns=9, left=kernel // 2), "trunk")
    with pool_of(2):
        check(compiled(spec, "avx512_vnni", ConvDecision(**fields)), spec, "avx512_vnni")


def test_what_has_no_kernel_has_a_reason():
    spec = spec_of(geometry_of(8, 8, 3, groups=2), "uint8")
    isa = ISA["avx512_vnni"]
    with pytest.raises(ValueError, match="4 outputs per group"):
        conv_prim_func(spec, choose_conv(spec, isa, 1), isa)


def test_tiles_larger_than_the_result_are_refused():
    spec = spec_of(geometry_of(8, 8, 3), "uint8")
    with pytest.raises(ValueError, match="tile of 6 x 1"):
        conv_prim_func(spec, ConvDecision(pixel_tile=6, column_tile=1), ISA["avx512_vnni"])
