"""float32 linear layers for x86: the layers that a plan leaves in float.

    out = x @ weight (+ bias) (then relu)

x is float32 [rows, inputs]. The weight is packed as `pack_float_weight` does it, [groups, inputs, 16];
the bias is padded to [groups * 16]; x and out [rows, outputs] are not padded. Sums run over the inputs in
their order, one fused multiply-add each, so a result depends on neither tiles nor threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import IRModule, tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.schedule.linear_spec import LANES
from tvmq.schedule.register_tiles import (
    MAX_ACCUMULATORS,
    MOST_ACCUMULATORS,
    SLACK_GROUPS,
    SLACK_ROWS,
    Decision,
    choose_tiles,
    tile,
    tile_space,
)
from tvmq.schedule.space import Space

# AVX2 has 16 registers of half a group: 6 groups of sums, the weights of one, a broadcast input.
AVX2_ACCUMULATORS = 6


def pack_float_weight(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 [inputs, outputs] as [groups, inputs, 16], zeros in the padded outputs."""
    inputs, outputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -outputs % LANES)))
    return np.ascontiguousarray(padded.reshape(inputs, -1, LANES).transpose(1, 0, 2))


def unpack_float_weight(
    packed: npt.NDArray[np.float32], inputs: int, outputs: int
) -> npt.NDArray[np.float32]:
    """Return float32 [inputs, outputs], the inverse of pack_float_weight."""
    return np.ascontiguousarray(packed.transpose(1, 0, 2).reshape(inputs, -1)[:, :outputs])


def default_float_decision(rows: int, inputs: int, outputs: int, threads: int, *, avx512: bool) -> Decision:
    """Return tiles that need no tuning; avx512: the CPU has 32 registers of 16 floats."""
    return choose_tiles(
        rows,
        -(-outputs // LANES),
        inputs,
        accumulators=MAX_ACCUMULATORS if avx512 else AVX2_ACCUMULATORS,
        widest=MAX_ACCUMULATORS if avx512 else 1,
        threads=threads,
    )


def float_space(rows: int, inputs: int, outputs: int, threads: int, *, avx512: bool) -> Space:
    """Return the space of `schedule_float_linear`."""
    return tile_space(
        default_float_decision(rows, inputs, outputs, threads, avx512=avx512),
        rows,
        -(-outputs // LANES),
        inputs,
        widest=MOST_ACCUMULATORS if avx512 else 2,
        threads=threads,
    )


def float_linear_prim_func(
    rows: int, inputs: int, outputs: int, *, bias: bool, relu: bool = False
) -> tirx.PrimFunc:
    """Return the kernel in plain loops; parameters x, weight, bias if any, out."""
    groups = -(-outputs // LANES)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            x = T.arg("x", T.buffer((rows, inputs), "float32"))
            weight = T.arg("weight", T.buffer((groups, inputs, LANES), "float32"))
            offset = T.arg("bias", T.buffer((groups * LANES,), "float32")) if bias else None
            out = T.arg("out", T.buffer((rows, outputs), "float32"))
            shape = (rows + SLACK_ROWS, groups + SLACK_GROUPS, LANES)
            total = T.sblock_alloc_buffer(shape, "float32")
            _accumulate(x, weight, total)
            _finish(total, offset, out, relu)
        return builder.get()


def schedule_float_linear(prim_func: tirx.PrimFunc, decision: Decision) -> tirx.PrimFunc:
    """Return prim_func tiled; the compiler picks the vector instructions of its target."""
    sch = Schedule(IRModule({"main": prim_func}))
    tile(sch, decision, intrinsic=None)
    return sch.mod["main"]


def _accumulate(x: Any, weight: Any, total: Any) -> None:
    rows, groups, _ = total.shape
    last_row, last_group, inputs = x.shape[0] - 1, weight.shape[0] - 1, x.shape[1]
    with T.grid(rows, groups, LANES, inputs) as (i, g, n, k), T.sblock("accumulate"):
        row, group, lane = T.axis.spatial(rows, i), T.axis.spatial(groups, g), T.axis.spatial(LANES, n)
        depth = T.axis.reduce(inputs, k)
        with T.init():
            T.buffer_store(total, T.float32(0), [row, group, lane])
        product = x[T.min(row, last_row), depth] * weight[T.min(group, last_group), depth, lane]
        T.buffer_store(total, total[row, group, lane] + product, [row, group, lane])


def _finish(total: Any, offset: Any, out: Any, relu: bool) -> None:
    rows, outputs = (int(extent) for extent in out.shape)
    groups = -(-outputs // LANES)
    last_width = outputs - (groups - 1) * LANES
    with T.grid(rows, groups) as (i, g), T.sblock("finish"):
        row, group = T.axis.spatial(rows, i), T.axis.spatial(groups, g)
        first = group * LANES
        lanes = T.ramp(first, 1, LANES)
        reads = [total[row, group, 0:LANES]]
        values = total[row, group, T.ramp(0, 1, LANES)]
        if offset is not None:
            reads.append(offset[first : first + LANES])
            values = values + offset[lanes]
        if relu:
            values = T.max(values, T.broadcast(T.float32(0), LANES))
        T.reads(*reads)
        T.writes(out[row, first : first + LANES])
        if last_width == LANES:
            T.buffer_store(out, values, [row, lanes])
            return
        with T.If(group < groups - 1):
            with T.Then():
                T.buffer_store(out, values, [row, lanes])
            with T.Else():
                staged = T.sblock_alloc_buffer((LANES,), "float32")
                T.buffer_store(staged, values, [T.ramp(0, 1, LANES)])
                with T.serial(last_width) as lane:
                    T.buffer_store(out, staged[lane], [row, first + lane])
