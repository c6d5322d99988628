"""Dots of bytes on ARM: exact at the ends of their ranges, with and without the instruction for them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tests.schedule.isa_cases import EMULATED, ISA, built, marked
from tvmq.schedule import arm_intrinsics
from tvmq.schedule.vectors import load, store


@pytest.mark.parametrize("isa", [marked(name) for name in EMULATED])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dots_of_any_bytes_are_exact(isa: str, dtype: str) -> None:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            left, right = (T.arg(name, T.buffer((16,), dtype)) for name in ("left", "right"))
            total = T.arg("total", T.buffer((4,), "int32"))
            vectors = (load(buffer, 0, 16) for buffer in (left, right))
            store(total, 0, arm_intrinsics.dot(ISA[isa], load(total, 0, 4), *vectors))
        func = builder.get()
    limits = np.iinfo(dtype)
    a, b = np.full((2, 16), limits.min, dtype)
    a[4:8] = b[4:8] = limits.max
    a[8:] = np.random.default_rng(0).integers(limits.min, limits.max, 8)
    b[8:12] = limits.max
    total = tvm.runtime.tensor(np.arange(4, dtype="int32"))
    built(func, isa)(tvm.runtime.tensor(a), tvm.runtime.tensor(b), total)
    products = a.astype(int) * b
    np.testing.assert_array_equal(total.numpy(), np.arange(4) + products.reshape(4, 4).sum(1))


def test_two_least_weights_side_by_side_are_found() -> None:
    weights = np.full(64, -127, np.int8)
    weights[::2] = -128
    assert arm_intrinsics.pairs_stay_in_words(weights)
    weights[7] = -128
    assert not arm_intrinsics.pairs_stay_in_words(weights)
