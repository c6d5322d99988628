"""A dot of four bytes is exact at the ends of their ranges, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.isa_cases import ISA, NAMES, built
from tvmq.schedule.dots import activations, dot, signed, weights
from tvmq.schedule.vectors import load, store


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_extremes_are_exact(name):
    isa = ISA[name]
    lanes = 16 // isa.parts
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x, w, total = (
            T.arg(name, T.buffer((n * lanes,), dtype))
            for name, n, dtype in (("x", 4, "uint8"), ("w", 4, "int8"), ("total", 1, "int32"))
        )
        with T.sblock("root"):
            T.reads(x[0 : 4 * lanes], w[0 : 4 * lanes], total[0:lanes])
            T.writes(total[0:lanes])
            words = T.reinterpret(
                f"int32x{lanes}", (signed if isa.neon else (lambda v: v))(load(x, 0, 4 * lanes))
            )
            seen, own = activations(isa, words), weights(isa, load(w, 0, 4 * lanes))
            store(total, 0, dot(isa, load(total, 0, lanes), seen, own))
    kernel = built(builder.get(), name)
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([0, 1, 127, 128, 255], np.uint8), 4 * lanes)
    factors = rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), 4 * lanes)
    values[:8], factors[:4], factors[4:8] = 255, -128, 127
    if name == "neon":
        factors = np.maximum(factors, -127)  # two of -128 side by side have no kernel there
    start = rng.integers(-1000, 1000, lanes).astype(np.int32)
    total = tvm.runtime.tensor(start)
    kernel(tvm.runtime.tensor(values), tvm.runtime.tensor(factors), total)
    products = (values.astype(np.int64) - 128 * isa.neon) * factors
    np.testing.assert_array_equal(total.numpy(), start + products.reshape(-1, 4).sum(1))
