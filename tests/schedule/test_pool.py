"""The pooling kernel equals numerics bit for bit, for any window and number of channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of
from tests.schedule.pool import pool_of
from tests.schedule.pool_cases import pooled, pooling_of
from tvmq.schedule.pool import PoolSpec, pool_prim_func

native = {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


def check(spec: PoolSpec, threads: int = 1, target: object = native) -> None:
    kernel = tvm.compile(pool_prim_func(spec, threads), target=tvm.target.Target(target))
    x, expected = pooled(spec.pooling, spec.geometry)
    out = tvm.runtime.tensor(np.full(expected.shape, 77, expected.dtype))
    kernel(tvm.runtime.tensor(x), out)
    np.testing.assert_array_equal(out.numpy(), expected)


@settings(max_examples=15, deadline=None)
@given(
    operation=st.sampled_from(["max", "mean"]),
    in_dtype=st.sampled_from(["uint8", "int8", "int16"]),
    channels=st.integers(1, 140),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 6)] * 4),  # also more than the window: some see no pixel
)
@example("max", "uint8", 64, (3, 3), (2, 2), (1, 1, 1, 1))
@example("mean", "uint8", 3, (2, 2), (1, 1), (3, 3, 3, 3))
@example("mean", "int16", 97, (9, 7), (1, 1), (0, 0, 0, 0))  # of all pixels
def test_any_window_is_exact(operation, in_dtype, channels, window, strides, padding):
    names = (
        "kernel_rows",
        "kernel_columns",
        "stride_rows",
        "stride_columns",
        "top",
        "left",
        "bottom",
        "right",
    )
    fields = dict(zip(names, (*window, *strides, *padding), strict=True))
    geometry = geometry_of(channels, channels, 1, groups=channels, **fields)
    check(PoolSpec(geometry, pooling_of(operation, in_dtype, geometry)))


@pytest.mark.parametrize(("out_dtype", "limits"), [("uint8", (0, 15)), ("int8", (-32, 31))])
def test_a_mean_of_few_bits_is_exact(out_dtype, limits):
    geometry = geometry_of(37, 37, 2, groups=37)
    mean = replace(pooling_of("mean", "uint8", geometry, out_dtype), low=limits[0], high=limits[1])
    check(PoolSpec(geometry, mean))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cpu", ["native", "x86-64"])
def test_threads_share_lines_on_any_cpu(threads, cpu):
    geometry = geometry_of(64, 64, 3, groups=64, rows=40, columns=40, top=1)
    target = native if cpu == "native" else {"kind": "llvm", "mcpu": cpu}
    with pool_of(threads):
        check(PoolSpec(geometry, pooling_of("max", "uint8", geometry)), 2, target)
