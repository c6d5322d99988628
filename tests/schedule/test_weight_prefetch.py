"""Prefetches in the reduction loop reach every line of the next tile, and change no number."""

from __future__ import annotations

import pytest
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from tvm import ir, tirx
from tvm.sym import Analyzer

from tests.schedule.isa_cases import ISA, VNNI_NAMES
from tests.schedule.linear_cases import check, compiled
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.weight_prefetch import line_of
from tvmq.schedule.x86_linear import linear_prim_func, schedule_linear

FEW = LinearSpec(rows=9, inputs=160, outputs=100, out_dtype="uint8")
TILES = Decision(row_tile=4, column_tile=3)


def prefetches(func: tirx.PrimFunc) -> int:
    found = []

    def look(node: ir.Call) -> None:
        if isinstance(node.op, ir.Op) and node.op.name == "tirx.prefetch":
            found.append(node)

    tvm_ffi.structural_walk(func.body, (ir.Call, look))
    return len(found)


def scheduled(spec: LinearSpec, decision: Decision) -> tirx.PrimFunc:
    isa = ISA["avx512_vbmi"]
    return schedule_linear(linear_prim_func(spec, isa, ahead=decision.ahead), spec, decision, isa)


@given(tiles=st.integers(2, 9), depths=st.integers(1, 60))
def test_every_line_is_asked_for(tiles: int, depths: int) -> None:
    row_tile, step = tirx.Var("row_tile", "int32"), tirx.Var("step", "int32")
    line, simplify = line_of(row_tile, step, tiles, depths), Analyzer().simplify

    def at(r: int, k: int) -> int:
        values = {row_tile: tirx.const(r, "int32"), step: tirx.const(k, "int32")}
        return int(simplify(tvm_ffi.structural_map(line, (tirx.Var, lambda v: values.get(v, v)))))

    asked = {at(r, k) for r in range(tiles) for k in range(depths)}
    assert asked == set(range(depths))


@pytest.mark.parametrize(
    ("spec", "decision", "count"),
    [
        (FEW, TILES, 3),  # one for each group of the tile
        (FEW, Decision(row_tile=9, column_tile=1), 0),  # each weight is read once
        (FEW, Decision(row_tile=4, column_tile=3, outer="rows"), 0),
    ],
)
def test_few_rows_prefetch_in_the_loop(spec: LinearSpec, decision: Decision, count: int) -> None:
    assert prefetches(scheduled(spec, decision)) == count


@pytest.mark.parametrize("isa", VNNI_NAMES)
@pytest.mark.parametrize("decision", [TILES, Decision(row_tile=2, column_tile=4, row_chunks=2, unroll=4)])
def test_the_numbers_stay(isa: str, decision: Decision) -> None:
    check(compiled(FEW, isa, decision), FEW)
