"""The float kernels give the float64 product to within rounding, for any shape and any tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tvmq.schedule.float_linear import (
    default_float_decision,
    float_linear_prim_func,
    pack_float_weight,
    schedule_float_linear,
)
from tvmq.schedule.register_tiles import Decision

pytestmark = pytest.mark.isa("avx2")


def run(
    rows: int, inputs: int, outputs: int, *, bias: bool, relu: bool, decision: Decision, cpu: str = "haswell"
) -> tuple[Any, Any, Any]:
    """Return the kernel's output, the float64 one, and the bound of the rounding error."""
    func = float_linear_prim_func(rows, inputs, outputs, bias=bias, relu=relu)
    func = schedule_float_linear(func, decision)
    kernel = tvm.compile(tvm.IRModule({"main": func}), tvm.target.Target({"kind": "llvm", "mcpu": cpu}))
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(s, "float32") for s in ((rows, inputs), (inputs, outputs)))
    offset = random.standard_normal(outputs, "float32") * bias
    arguments = [x, pack_float_weight(weight), *([np.pad(offset, (0, -outputs % 16))] if bias else [])]
    out = tvm.runtime.tensor(np.full((rows, outputs), 77, "float32"))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    exact = x.astype("float64") @ weight.astype("float64") + offset
    magnitude = np.abs(x).astype("float64") @ np.abs(weight) + np.abs(offset)
    error = (inputs + 1) * 2.0**-24 * magnitude
    return out.numpy(), np.maximum(exact, 0) if relu else exact, error


@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 60),
    outputs=st.integers(1, 120),
    bias=st.booleans(),
    relu=st.booleans(),
    avx512=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
@example(rows=1, inputs=1, outputs=1, bias=False, relu=False, avx512=False, threads=1)
@example(rows=67, inputs=97, outputs=193, bias=True, relu=True, avx512=True, threads=2)
def test_any_shape(
    rows: int, inputs: int, outputs: int, bias: bool, relu: bool, avx512: bool, threads: int
) -> None:
    decision = default_float_decision(rows, inputs, outputs, threads, avx512=avx512)
    out, exact, error = run(rows, inputs, outputs, bias=bias, relu=relu, decision=decision)
    assert (np.abs(out - exact) <= error).all()


def test_tiles_do_not_change_the_sums() -> None:
    shape = {"rows": 29, "inputs": 50, "outputs": 70, "bias": True, "relu": False}
    tiles = [Decision(row_tile=6, column_tile=1), Decision(row_tile=2, column_tile=3, outer="rows")]
    first, second = (run(**shape, decision=decision)[0] for decision in tiles)
    np.testing.assert_array_equal(first, second)


@pytest.mark.isa("avx512f")
def test_avx512() -> None:
    decision = default_float_decision(31, 40, 100, 1, avx512=True)
    out, exact, error = run(31, 40, 100, bias=True, relu=False, decision=decision, cpu="skylake-avx512")
    assert (np.abs(out - exact) <= error).all()
