"""uint8 x int8 linear layers for x86 with vpdpbusd: products, requantize, residual and table in one kernel.

`linear_spec` says what a kernel computes, `register_tiles` how it is tiled. Nothing is read or written
outside of the buffers, whatever the number of rows and outputs.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from tvm import IRModule, tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.schedule import x86_intrinsics
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import MOST_LINES, Finish, groups_per_step
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, buffers, supports
from tvmq.schedule.register_tiles import (
    MOST_ACCUMULATORS,
    SLACK_GROUPS,
    SLACK_ROWS,
    Decision,
    choose_tiles,
    tile,
    tile_space,
)
from tvmq.schedule.space import Space
from tvmq.schedule.weight_prefetch import prefetch_in_loop


def default_decision(spec: LinearSpec, threads: int, isa: Isa) -> Decision:
    """Return tiles that come close to the multiplier's peak without tuning."""
    step = groups_per_step(spec, isa)
    return choose_tiles(
        spec.rows,
        spec.groups,
        spec.inputs // DEPTH,
        groups_per_step=step,
        accumulators=isa.accumulators,
        widest=step if isa.parts > 1 else isa.accumulators,
        threads=threads,
    )


def linear_space(spec: LinearSpec, threads: int, isa: Isa) -> Space:
    """Return what `schedule_linear` may be told."""
    step = groups_per_step(spec, isa)
    return tile_space(
        default_decision(spec, threads, isa),
        spec.rows,
        spec.groups,
        spec.inputs // DEPTH,
        groups_per_step=step,
        widest=MOST_ACCUMULATORS if isa.parts == 1 else 2 * step,
        threads=threads,
    )


def linear_prim_func(spec: LinearSpec, isa: Isa, *, ahead: int = 0) -> tirx.PrimFunc:
    """Return the kernel in plain loops, but for tables, which stay in the registers of isa.

    ahead: prefetch the weights that many groups further on, the column_tile of the tiles to come.

    Integer out: clip((acc >> shift[n]) + residual), then the table.
    Gain: acc is the sum of products times gain[n], plus the bias.
    Fixed point: ((int64(acc) * multiplier[n] + 2**(shift[n] - 1)) >> shift[n]) + zero_point + residual, clip.
    Float out: float32(acc) * scale[n].
    """
    if reason := supports(spec):
        raise ValueError(f"linear_prim_func: {reason}; ask supports() first")
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec).items()}
            shape = (spec.rows + SLACK_ROWS, spec.groups + SLACK_GROUPS, LANES)
            total = T.sblock_alloc_buffer(shape, "int32")
            _accumulate(spec, arguments["x"], arguments["weight"], total)
            Finish(spec, arguments, total, isa, ahead).emit()
        return builder.get()


def schedule_linear(
    prim_func: tirx.PrimFunc, spec: LinearSpec, decision: Decision, isa: Isa
) -> tirx.PrimFunc:
    """Return prim_func, which `linear_prim_func` made of spec and isa, tiled."""
    x86_intrinsics.register()
    sch = Schedule(IRModule({"main": prim_func}))
    tile(sch, decision, groups_per_step=groups_per_step(spec, isa), intrinsic=isa.dot)
    depths = spec.inputs // DEPTH
    if decision.ahead and ceil(depths / spec.rows) > MOST_LINES:
        return prefetch_in_loop(sch.mod["main"], decision.column_tile, depths)
    return sch.mod["main"]


def _accumulate(spec: LinearSpec, x: Any, weight: Any, total: Any) -> None:
    rows, groups, _ = total.shape
    depths = spec.inputs // DEPTH
    with T.grid(rows, groups, LANES, depths, DEPTH) as (i, g, n, k, q), T.sblock("accumulate"):
        row, group, lane = T.axis.spatial(rows, i), T.axis.spatial(groups, g), T.axis.spatial(LANES, n)
        depth, byte = T.axis.reduce(depths, k), T.axis.reduce(DEPTH, q)
        with T.init():
            T.buffer_store(total, T.int32(0), [row, group, lane])
        x_byte = x[T.min(row, spec.rows - 1), depth * DEPTH + byte]
        weight_byte = weight[T.min(group, spec.groups - 1), depth, lane, byte]
        product = T.cast(x_byte, "int32") * T.cast(weight_byte, "int32")
        T.buffer_store(total, total[row, group, lane] + product, [row, group, lane])
