"""Linears store keys and values packed, bit for bit what numerics gives, where vpdpbusd has 512 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, built, marked
from tests.schedule.linear_cases import EPILOGUES, guarded, random_case
from tests.schedule.operand_layout import packed_rows
from tests.schedule.pool import pool_of
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.packed_operand import KEYS, VALUES, PackedOperand
from tvmq.schedule.x86_operand_linear import (
    OperandDecision,
    operand_linear_prim_func,
    operand_space,
    supports,
)

DEIT = PackedOperand(operand=KEYS, batch=1, tokens=197, heads=3, head_dim=64)


def spec_of(operand: PackedOperand, inputs: int = 36, **epilogue: Any) -> LinearSpec:
    sizes = {"rows": operand.batch * operand.tokens, "outputs": operand.heads * operand.head_dim}
    return LinearSpec(inputs=inputs, **sizes, **({"out_dtype": "int8"} | epilogue))


def check(spec: LinearSpec, operand: PackedOperand, isa: str, threads: int = 1, **decisions: Any) -> None:
    chosen = OperandDecision(**{**operand_space(spec, threads).default, **decisions})
    func = operand_linear_prim_func(spec, operand, ISA[isa], chosen)
    kernel = built(func, isa)
    arguments, rows = random_case(spec)
    out = tvm.runtime.tensor(np.full(operand.shape, 77, "int8"))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), packed_rows(rows, operand))


@pytest.mark.parametrize("isa", [marked("avx512_vbmi"), marked("avx512_vnni")])
@settings(max_examples=8, deadline=None)
@given(
    operand=st.sampled_from([KEYS, VALUES]),
    sizes=st.tuples(st.just(1), st.integers(1, 60) | st.sampled_from([127, 128, 197]))
    | st.tuples(st.integers(2, 3), st.sampled_from([16, 48])),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([16, 32, 48, 64]),
    inputs=st.sampled_from([4, 36, 200]),
    threads=st.sampled_from([1, 2, 4]),
    epilogue=st.sampled_from(
        [
            {},
            EPILOGUES["int8"],
            {"low": -7, "high": 7},
            {"gain": True},
            {"fixed_point": True, "zero_point": 0},
        ]
    ),
)
def test_any_shape_is_exact(
    isa: str,
    operand: str,
    sizes: tuple[int, int],
    heads: int,
    head_dim: int,
    inputs: int,
    threads: int,
    epilogue: dict[str, Any],
) -> None:
    batch, tokens = sizes
    layout = PackedOperand(operand=operand, batch=batch, tokens=tokens, heads=heads, head_dim=head_dim)
    check(spec_of(layout, inputs, **epilogue), layout, isa, threads)


@pytest.mark.parametrize("operand", [KEYS, VALUES])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", [marked("avx512_vnni")])
def test_both_thread_counts_give_the_same_bytes(isa: str, threads: int, operand: str) -> None:
    layout = replace(DEIT, operand=operand)
    spec = spec_of(layout, 200)
    with pool_of(threads):
        check(spec, layout, isa, threads=2)
        check(spec, layout, isa, threads=2, row_chunks=2, parallel=True)


@pytest.mark.parametrize("isa", [marked("avx512_vbmi")])
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_every_point_of_the_space_gives_the_same_bytes(isa: str, data: st.DataObject) -> None:
    layout = replace(DEIT, operand=data.draw(st.sampled_from([KEYS, VALUES])), tokens=37, heads=1)
    spec = spec_of(layout)
    points = list(operand_space(spec, 2))
    check(spec, layout, isa, threads=2, **data.draw(st.sampled_from(points)))


@pytest.mark.parametrize("isa", [marked("avx512_vnni")])
def test_nothing_past_the_activations_is_read(isa: str) -> None:
    layout = replace(DEIT, tokens=16, heads=1)
    spec = spec_of(layout, 64)
    chosen = OperandDecision(**operand_space(spec, 1).default)
    kernel = built(operand_linear_prim_func(spec, layout, ISA[isa], chosen), isa)
    arguments, rows = random_case(spec)
    out = tvm.runtime.tensor(np.zeros(layout.shape, "int8"))
    kernel(*(tvm.runtime.from_dlpack(guarded(a)) for a in arguments), out)
    np.testing.assert_array_equal(out.numpy(), packed_rows(rows, layout))


def test_what_it_cannot_store_has_a_reason() -> None:
    spec, vnni = spec_of(DEIT), ISA["avx512_vnni"]
    assert supports(spec, DEIT, vnni) is None
    for name in ("avx2", "avx_vnni"):
        assert "vpdpbusd" in str(supports(spec, DEIT, ISA[name]))
    assert "not the shape" in str(supports(replace(spec, rows=196), DEIT, vnni))
    assert "int8" in str(supports(spec_of(DEIT, out_dtype="uint8"), DEIT, vnni))
    with pytest.raises(ValueError, match="vpdpbusd"):
        operand_linear_prim_func(spec, DEIT, ISA["avx2"], OperandDecision(**operand_space(spec, 1).default))
