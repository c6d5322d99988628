"""The default schedule of what no kernel claims: element-wise chains, layout changes, small reductions.

Per PrimFunc: producers move into their consumer where that repeats no work, the innermost loop becomes
vectors where memory is contiguous, and the outer loops run in parallel where there is work for it.

The numbers stay those of the unscheduled function, bit for bit. Reductions keep their order: only spatial
loops move. And LLVM contracts a multiply that feeds an add into one fused multiply-add, with one rounding
instead of two, so a producer that ends in a float multiply stays out of a consumer that adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock, SBlockRealize, Schedule, ScheduleError
from tvm.sym import Analyzer

from tvmq.schedule.contiguous_axes import FLAT, Flat, contiguous_loops
from tvmq.schedule.cuda.leftovers import schedule_gpu_leftovers

SCHEDULED = "tvmq.scheduled"  # the attribute of PrimFuncs that carry their schedule already
MAX_LANES = 16
MIN_LANES = 4
PARALLEL_WORK = 2**20  # operations, some 20 us: under it, waking threads costs more than it saves
LIBRARY_CALL_WORK = 32  # operations that one exp is worth
PARALLEL_CHUNKS = 64  # outer loops are fused until they have this many iterations, and no further

# TVM does not know that these have vectors; the intrinsic of LLVM, which they become anyway, does.
ROUNDING = {name: "llvm.nearbyint" for name in ("tirx.nearbyint", "tirx.round")}  # both: ties to even
ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, tirx.Cast, tirx.Select, TensorLoad)
VECTOR_CALLS = {
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "fabs",
    "floor",
    "if_then_else",
    "likely",
    "nearbyint",
    "round",
    "shift_left",
    "shift_right",
    "sqrt",
    "trunc",
}

Block = Any  # TVM ships no stubs
Loop = Any
Expr = Any


@ir.transform.module_pass(opt_level=0, name="ScheduleLeftovers")
class ScheduleLeftovers:
    """Schedule every PrimFunc of a module that has no schedule yet; see schedule_leftovers."""

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: ir.transform.PassContext) -> tvm.IRModule:
        return schedule_leftovers(mod, self.target)


def schedule_leftovers(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Return mod with a default schedule in every PrimFunc that lacks the attribute tvmq.scheduled.

    Loops become threads on a GPU: tvmq.schedule.cuda.leftovers. Other targets are left alone.
    """
    if target.kind.name == "cuda":
        return schedule_gpu_leftovers(mod, target)
    if target.kind.name != "llvm":
        return mod
    functions = {}
    for name, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc) and not _is_scheduled(func):
            func = _scheduled(func)
        functions[name] = func
    return tvm.IRModule(functions, attrs=mod.attrs)


def _is_scheduled(func: tirx.PrimFunc) -> bool:
    """A function without a root block (an extern call, lowered code) cannot be scheduled either."""
    return SCHEDULED in (func.attrs or {}) or not isinstance(func.body, SBlockRealize)


def _scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    schedule = Schedule(tvm.IRModule({"main": func}))
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        if _repeats_no_work(schedule, block):
            _attempt(schedule.compute_inline, block)
    for block in schedule.get_child_blocks(root):
        _attempt(_schedule_block, schedule, block)
    result = schedule.mod["main"].with_attr(SCHEDULED, True)
    return result.with_body(tvm_ffi.structural_map(result.body, (SBlock, _ready_for_vectors)))


def _ready_for_vectors(block: SBlock) -> SBlock:
    """Simplify block's indices by the ranges of its axes, and give rounding its vector form.

    Later passes know the ranges of loops only, and leave (16 * a + lane) % 16 as it is: a gather.
    """
    if not block.iter_vars:
        return block
    flat = Flat.of(block)
    analyzer = Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)

    def simple(buffer: Any, indices: Sequence[Expr]) -> list[Expr]:
        indices = flat.indices(buffer, indices) if flat else indices
        return [analyzer.simplify(index) for index in indices]

    def load(node: TensorLoad) -> Expr:
        return tirx.BufferLoad(node.source, simple(node.source, node.indices))

    def store(node: tirx.BufferStore) -> tirx.BufferStore:
        return tirx.BufferStore(node.buffer, node.value, simple(node.buffer, node.indices))

    def call(node: ir.Call) -> ir.Call:
        name = ROUNDING.get(node.op.name) if isinstance(node.op, ir.Op) else None
        if name is None:
            return node
        return tirx.call_llvm_pure_intrin(str(node.ty.dtype), name, *node.args)

    body = tvm_ffi.structural_map(
        block.body, [(TensorLoad, load), (tirx.BufferStore, store), (ir.Call, call)]
    )
    return SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        body,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def _attempt(step: Callable[..., None], *arguments: Any) -> None:
    """Run step(*arguments); a primitive that does not apply leaves the function as it was before it."""
    try:
        step(*arguments)
    except ScheduleError:
        return


def _repeats_no_work(schedule: Schedule, producer: Block) -> bool:
    """Whether inlining producer computes each element once, to the same bits."""
    consumers = schedule.get_consumers(producer)
    body = schedule.get(producer).body
    if not consumers or not isinstance(body, tirx.BufferStore):
        return False
    if isinstance(body.value, TensorLoad):
        return True
    consumer = schedule.get(consumers[0])
    if len(consumers) > 1 or consumer.init is not None or not isinstance(consumer.body, tirx.BufferStore):
        return False
    loads = [load for load in _loads(consumer.body.value) if load.source.same_as(body.buffer)]
    same_size = _domain(consumer) <= _domain(schedule.get(producer))
    contracts = _ends_in_multiply(body.value) and _is_added(consumer.body.value, body.buffer)
    return len(loads) == 1 and same_size and not contracts and not _library_calls(consumer.body.value)


def _domain(block: SBlock) -> float:
    extents = [variable.dom.extent for variable in block.iter_vars]
    return math.prod(int(extent) if isinstance(extent, tirx.IntImm) else math.inf for extent in extents)


def _nodes(node: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(node, lambda part: found.append(part))
    return found


def _substitute(expr: Expr, values: dict[Any, Expr]) -> Expr:
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda variable: values.get(variable, variable)))


def _loads(expr: Expr) -> list[TensorLoad]:
    return [node for node in _nodes(expr) if isinstance(node, TensorLoad)]


def _is_float(expr: Expr) -> bool:
    return "float" in str(expr.ty.dtype)


def _branches(expr: Expr) -> Iterator[Expr]:
    """The expressions whose value expr may simply be."""
    if isinstance(expr, tirx.Select):
        yield from (*_branches(expr.true_value), *_branches(expr.false_value))
    elif isinstance(expr, ir.Call) and expr.op.same_as(ir.Op.get("prim.if_then_else")):
        yield from (branch for arg in expr.args[1:] for branch in _branches(arg))
    else:
        yield expr


def _operations(body: Any) -> int:
    """How many operations one iteration of body takes, about."""
    plain = sum(isinstance(node, ARITHMETIC) for node in _nodes(body))
    return 1 + plain + LIBRARY_CALL_WORK * len(_library_calls(body))


def _library_calls(body: Any) -> list[ir.Call]:
    """The calls, like exp, that keep LLVM from making vectors of their whole loop."""
    calls = [node for node in _nodes(body) if isinstance(node, ir.Call) and isinstance(node.op, ir.Op)]
    return [call for call in calls if call.op.name.rpartition(".")[2] not in VECTOR_CALLS]


def _stores_bool(body: Any) -> bool:
    """Whether body keeps truth values in memory: bytes there, but TVM's vectors of them are bits."""
    loaded = [node.source for node in _nodes(body) if isinstance(node, TensorLoad)]
    stored = [node.buffer for node in _nodes(body) if isinstance(node, tirx.BufferStore)]
    return any(str(buffer.dtype) == "bool" for buffer in (*loaded, *stored))


def _ends_in_multiply(value: Expr) -> bool:
    return any(isinstance(branch, tirx.Mul) and _is_float(branch) for branch in _branches(value))


def _is_added(value: Expr, buffer: tirx.Buffer) -> bool:
    """Whether an element of buffer is an operand of an addition or subtraction somewhere in value."""
    sums = [node for node in _nodes(value) if isinstance(node, tirx.Add | tirx.Sub)]
    operands = (branch for node in sums for side in (node.a, node.b) for branch in _branches(side))
    return any(isinstance(operand, TensorLoad) and operand.source.same_as(buffer) for operand in operands)


def _schedule_block(schedule: Schedule, block: Block) -> None:
    loops = schedule.get_loops(block)
    realize = schedule.get(loops[-1]).body if loops else None
    if not isinstance(realize, SBlockRealize):
        return
    extents = [schedule.get(loop).extent for loop in loops]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return
    spatial = _leading_spatial(schedule, loops, realize)
    if not spatial:
        return
    nest = [schedule.get(loop) for loop in loops]
    plain = all(value.same_as(loop.loop_var) for value, loop in zip(realize.iter_values, nest, strict=False))
    vectorizable = plain and not _library_calls(realize.block.body) and not _stores_bool(realize.block.body)
    along = contiguous_loops(realize.block, len(spatial), schedule.mod["main"].params) if plain else 1
    if along > 1:
        spatial = _flatten(schedule, block, len(spatial), along)
    axis = len(spatial) - 1
    lanes = math.gcd(int(schedule.get(spatial[-1]).extent), MAX_LANES)
    wide = lanes >= MIN_LANES and vectorizable and (along > 1 or _is_contiguous(nest, axis, lanes))
    if wide:
        spatial = _vectorize(schedule, block, len(spatial), lanes)
    if along > 1:
        schedule.annotate(block, FLAT, [axis, lanes if wide else 1])
    if math.prod(map(int, extents)) * _operations(realize.block.body) >= PARALLEL_WORK:
        _parallelize(schedule, spatial)


def _leading_spatial(schedule: Schedule, loops: Sequence[Loop], realize: SBlockRealize) -> list[Loop]:
    """The outer loops that carry spatial axes only, up to the first that carries a reduction."""
    reduced = [
        value
        for axis, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
        if axis.iter_type != tirx.IterVar.DataPar
    ]
    count = 0
    for loop in loops:
        variable = schedule.get(loop).loop_var
        if any(variable.same_as(node) for value in reduced for node in _nodes(value)):
            break
        count += 1
    return list(loops[:count])


def _is_contiguous(nest: Sequence[tirx.For], inner: int, lanes: int) -> bool:
    """Whether every access inside nest touches lanes neighbours, or one element, as nest[inner] steps."""
    realize = nest[-1].body
    variable = nest[inner].loop_var
    lane, base = tirx.Var("lane", variable.ty.dtype), tirx.Var("base", variable.ty.dtype)
    analyzer = Analyzer()
    analyzer.bind(base, ir.Range(0, nest[inner].extent // lanes))
    analyzer.bind(lane, ir.Range(0, lanes - 1))
    for loop in nest:
        analyzer.bind(loop.loop_var, ir.Range(loop.min, loop.min + loop.extent))
    axes = dict(zip([a.var for a in realize.block.iter_vars], realize.iter_values, strict=True))

    def steps(index: Expr) -> int | None:
        """The distance between neighbours along index; None where it is not one number."""
        split = _substitute(_substitute(index, axes), {variable: base * lanes + lane})
        slope = analyzer.simplify(_substitute(split, {lane: lane + 1}) - split)
        return int(slope) if isinstance(slope, tirx.IntImm) else None

    accesses = [n for n in _nodes(realize.block.body) if isinstance(n, TensorLoad | tirx.BufferStore)]
    return all(
        steps(access.indices[-1]) in (0, 1) and all(steps(index) == 0 for index in access.indices[:-1])
        for access in accesses
        if len(access.indices)
    )


def _flatten(schedule: Schedule, block: Block, spatial: int, along: int) -> list[Loop]:
    """Make the last of the leading spatial loops one; return all of these."""
    axes = schedule.get(block).iter_vars
    extents = [int(axis.dom.extent) for axis in axes]
    first = spatial - along

    def fuse(*old: Expr) -> list[Expr]:
        index = old[first]
        for axis in range(first + 1, spatial):
            index = index * extents[axis] + old[axis]
        return [*old[:first], index, *old[spatial:]]

    dtype = str(axes[0].var.ty.dtype)
    schedule.transform_block_layout(block, tirx.IndexMap.from_func(fuse, len(axes), index_dtype=dtype))
    return list(schedule.get_loops(block)[: first + 1])


def _vectorize(schedule: Schedule, block: Block, spatial: int, lanes: int) -> list[Loop]:
    """Make the last of the leading spatial loops vectors, inside the reductions; return those before it.

    The split happens in the block's own axes, not in its loops, so that _ready_for_vectors sees the lane.
    """

    def split(*axes: Expr) -> list[Expr]:
        return [*axes[: spatial - 1], axes[spatial - 1] // lanes, axes[spatial - 1] % lanes, *axes[spatial:]]

    axes = schedule.get(block).iter_vars
    dtype = str(axes[0].var.ty.dtype)
    schedule.transform_block_layout(block, tirx.IndexMap.from_func(split, len(axes), index_dtype=dtype))
    loops = schedule.get_loops(block)
    reductions = loops[spatial + 1 :]
    if reductions:
        schedule.reorder(*reductions, loops[spatial])
        schedule.decompose_reduction(block, reductions[0])
    schedule.vectorize(loops[spatial])
    return list(loops[:spatial])


def _parallelize(schedule: Schedule, spatial: Sequence[Loop]) -> None:
    chosen: list[Loop] = []
    for loop in spatial:
        if math.prod(int(schedule.get(done).extent) for done in chosen) >= PARALLEL_CHUNKS:
            break
        chosen.append(loop)
    schedule.parallel(schedule.fuse(*chosen) if len(chosen) > 1 else chosen[0])
