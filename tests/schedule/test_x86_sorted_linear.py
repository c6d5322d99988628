"""The kernels that use saturating products equal numerics bit for bit, whatever the weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, marked, target_of
from tests.schedule.linear_cases import EPILOGUES, SMALL, guarded, random_case
from tests.schedule.pool import pool_of
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.saturation import pack_sorted
from tvmq.schedule.x86_sorted_linear import sorted_linear_prim_func, sorted_space, supports

NAMES = [marked(name) for name, isa in ISA.items() if not isa.quads]
ENDS = [(64, 64), (127, 1), (-64, -64), (-127, -1), (127, -127), (-128, 127), (-128, -128), (127, 127)]
case = partial(random_case, pack=pack_sorted)


def compiled(spec: LinearSpec, isa: str, **decisions: Any) -> Any:
    chosen = {**sorted_space(spec, 1, ISA[isa]).default, **decisions}
    func = sorted_linear_prim_func(spec, ISA[isa], **chosen)
    return tvm.compile(tvm.IRModule({"main": func}), target_of(ISA[isa]))


def run(kernel: Any, arguments: list[Any], expected: Any) -> None:
    out = tvm.runtime.tensor(np.full(expected.shape, 77, expected.dtype))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 40).map(lambda k: 4 * k),
    outputs=st.integers(1, 100),
    epilogue=st.sampled_from(sorted(EPILOGUES)),
    decision=st.integers(0, 99),
)
@example(rows=1, inputs=4, outputs=1, epilogue="uint8", decision=0)
@example(rows=13, inputs=24, outputs=50, epilogue="table", decision=3)
def test_any_shape_is_exact(
    isa: str, rows: int, inputs: int, outputs: int, epilogue: str, decision: int
) -> None:
    spec = LinearSpec(rows=rows, inputs=inputs, outputs=outputs, **EPILOGUES[epilogue])
    points = list(sorted_space(spec, 2, ISA[isa]))
    kernel = compiled(spec, isa, **points[decision % len(points)])
    for largest in (127, 80, 20):  # few, some and all blocks are exact
        run(kernel, *case(spec, largest=largest))


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_every_epilogue_is_exact(isa: str, epilogue: str) -> None:
    spec = LinearSpec(rows=23, inputs=36, outputs=75, **EPILOGUES[epilogue])
    run(compiled(spec, isa), *case(spec, largest=80))


@pytest.mark.parametrize("isa", NAMES)
def test_products_at_the_ends_of_int16_are_exact(isa: str) -> None:
    spec = replace(SMALL, inputs=256, out_dtype="float32")
    kernel = compiled(spec, isa)
    for pair in ENDS:
        arguments, _ = case(spec)
        weight = np.tile(np.array(pair, "int8"), 128)[:, None].repeat(spec.outputs, 1)
        arguments[0][...], arguments[2][...], arguments[3][...] = 255, 0, 1
        arguments[1] = pack_sorted(weight)
        run(kernel, arguments, np.full((spec.rows, spec.outputs), 255 * 128 * sum(pair), "float32"))


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(isa: str, threads: int) -> None:
    with pool_of(threads):
        spec = LinearSpec(rows=197, inputs=96, outputs=336, out_dtype="uint8", table=True)
        chosen = sorted_space(spec, 2, ISA[isa]).default
        assert chosen["parallel"]
        assert chosen["row_chunks"] == 2  # 21 groups do not share out
        run(compiled(spec, isa, **chosen), *case(spec, largest=80))


@pytest.mark.parametrize("isa", NAMES)
def test_nothing_is_touched_past_the_end(isa: str) -> None:
    spec = LinearSpec(rows=32, inputs=36, outputs=17, out_dtype="int16", residual=True)
    arguments, expected = case(spec)
    out = guarded(np.zeros_like(expected))
    kernel = compiled(spec, isa, row_tile=5)
    kernel(*(tvm.runtime.from_dlpack(guarded(a)) for a in arguments), tvm.runtime.from_dlpack(out))
    np.testing.assert_array_equal(out, expected)


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(SMALL) is None
    assert supports(replace(SMALL, inputs=4 * 65536)) == "262144 inputs are over 262140"
    with pytest.raises(ValueError, match="not a multiple of 4"):
        sorted_linear_prim_func(replace(SMALL, inputs=6), ISA["avx2"], row_tile=1)
