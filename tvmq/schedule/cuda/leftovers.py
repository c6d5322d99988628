"""Threads for what no kernel claims: element-wise chains, layout changes, small reductions, float layers.

Every element of a result is one thread's, and reductions keep their order, so integers and floats have the
bits of the unscheduled function. Rounding is to nearest, ties to even, as on CPUs: CUDA's round() is not.
TVM's DefaultGPUSchedule takes no function of two blocks, as float convolutions are.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import SBlockRealize, Schedule, dlight

from tvmq.schedule.cuda.launch import SCHEDULED

ROUND = "tirx.round"


def schedule_gpu_leftovers(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Return mod with threads in every PrimFunc that lacks the attribute tvmq.scheduled."""
    left = {gvar: func for gvar, func in mod.functions.items() if _is_left(func)}
    if not left:
        return mod
    prepared = tvm.IRModule({gvar: _ties_to_even(_inlined(func)) for gvar, func in left.items()})
    with target:
        bound = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(prepared)
    done = {gvar.name_hint: func.with_attr(SCHEDULED, True) for gvar, func in bound.functions.items()}
    functions = {
        gvar: done.get(gvar.name_hint, func) if gvar in left else func for gvar, func in mod.functions.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def _is_left(func: Any) -> bool:
    if not isinstance(func, tirx.PrimFunc) or SCHEDULED in (func.attrs or {}):
        return False
    return isinstance(func.body, SBlockRealize)


def _inlined(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Move every producer of single elements into its consumers: what one thread makes, no other reads."""
    schedule = Schedule(tvm.IRModule({"main": func}))
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        body = schedule.get(block).body
        if schedule.get_consumers(block) and isinstance(body, tirx.BufferStore):
            try:
                schedule.compute_inline(block)
            except tvm.s_tir.ScheduleError:
                continue
    return schedule.mod["main"]


def _ties_to_even(func: tirx.PrimFunc) -> tirx.PrimFunc:
    def call(node: ir.Call) -> ir.Call:
        if not (isinstance(node.op, ir.Op) and node.op.name == ROUND):
            return node
        return tirx.nearbyint(node.args[0])

    return func.with_body(tvm_ffi.structural_map(func.body, (ir.Call, call)))
