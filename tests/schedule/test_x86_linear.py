"""The linear kernels equal numerics bit for bit, for any shape and epilogue, inside their buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, VNNI_NAMES
from tests.schedule.linear_cases import EPILOGUES, SMALL, check, compiled, guarded, random_case
from tests.schedule.pool import pool_of
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.x86_linear import default_decision, linear_prim_func, schedule_linear


@pytest.mark.parametrize("isa", VNNI_NAMES)
@settings(max_examples=7, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 40).map(lambda k: 4 * k),
    outputs=st.integers(1, 200),
    epilogue=st.sampled_from(sorted(EPILOGUES)),
    threads=st.sampled_from([1, 2, 3]),
)
@example(rows=1, inputs=4, outputs=1, epilogue="uint8", threads=1)
@example(rows=37, inputs=24, outputs=256, epilogue="table", threads=2)  # four groups in one lookup
@example(rows=13, inputs=24, outputs=249, epilogue="table", threads=2)  # the same with a short last step
@example(rows=7, inputs=24, outputs=249, epilogue="int8", threads=1)  # four packed groups, inner limits
@example(rows=50, inputs=52, outputs=65, epilogue="trunk", threads=2)  # one channel in the last group
def test_any_shape_is_exact(
    isa: str, rows: int, inputs: int, outputs: int, epilogue: str, threads: int
) -> None:
    spec = LinearSpec(rows=rows, inputs=inputs, outputs=outputs, **EPILOGUES[epilogue])
    check(compiled(spec, isa, threads=threads), spec)


@pytest.mark.parametrize("isa", VNNI_NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(isa: str, threads: int) -> None:
    with pool_of(threads):
        spec = LinearSpec(rows=197, inputs=96, outputs=320, out_dtype="uint8", table=True)
        assert default_decision(spec, 2, ISA[isa]).parallel
        check(compiled(spec, isa, threads=2), spec)


@pytest.mark.parametrize("isa", VNNI_NAMES)
def test_nothing_is_touched_past_the_end(isa: str) -> None:
    # 32 rows of 17 outputs: no tile below divides them, and all sizes are multiples of 64 bytes.
    spec = LinearSpec(rows=32, inputs=36, outputs=17, out_dtype="int16", residual=True)
    kernel = compiled(spec, isa, Decision(row_tile=5, column_tile=2, parallel=False))
    arguments, expected = random_case(spec)
    out = guarded(np.zeros_like(expected))
    kernel(*(tvm.runtime.from_dlpack(guarded(a)) for a in arguments), tvm.runtime.from_dlpack(out))
    np.testing.assert_array_equal(out, expected)


def test_a_tile_that_splits_a_step_is_refused() -> None:
    vbmi = ISA["avx512_vbmi"]
    tabled = replace(SMALL, outputs=64, table=True)
    with pytest.raises(ValueError, match="column_tile is 3, a multiple of 4 is wanted"):
        schedule_linear(linear_prim_func(tabled, vbmi), tabled, Decision(row_tile=4, column_tile=3), vbmi)
    with pytest.raises(ValueError, match="ask supports"):
        linear_prim_func(replace(SMALL, inputs=6), vbmi)
