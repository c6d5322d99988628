"""Move the way back to NCHW behind what works on any layout, until it meets the way to NHWC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of

TO_NCHW = (0, 3, 1, 2)  # and, of an axis of NCHW, where NHWC has it: TO_NCHW[axis]
RANK = len(TO_NCHW)
UNARY = {
    "abs", "astype", "clip", "erf", "exp", "negative", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu",
    "nn.silu", "round", "sigmoid", "sqrt", "tanh",
}  # fmt: skip
BINARY = {"add", "divide", "maximum", "minimum", "multiply", "subtract"}
POOLS = {"nn.max_pool2d": op.nn.max_pool2d, "nn.avg_pool2d": op.nn.avg_pool2d}
REDUCTIONS = {"mean": op.mean, "sum": op.sum, "max": op.max}


@tvm.transform.module_pass(opt_level=0, name="SinkPermutes")
class SinkPermutes:
    """Before: lv = permute_dims(x, [0, 3, 1, 2]); lv1 = relu(lv); lv2 = permute_dims(lv1, [0, 2, 3, 1])
    After:  lv1 = relu(x)

    x is what a kernel leaves, a row for each pixel. No number changes but means, which add in the same order.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        """Return mod with the permutes that are left where somebody wants NCHW."""
        return rebuild(mod, _permute, _reshape, _unary, _binary, _pool, _reduction, _concat)


def _pixels(graph: Rebuild, expr: Expr) -> Expr | None:
    """Return the NHWC value that expr is the NCHW form of."""
    call = graph.call(expr, "permute_dims")
    return call.args[0] if call is not None and _axes(call) == TO_NCHW else None


def _axes(call: Expr) -> tuple[int, ...]:
    axes = call.attrs.axes
    return tuple(int(axis) for axis in axes) if axes is not None else ()


def _back(graph: Rebuild, var: Var, value: Expr) -> Expr:
    return op.permute_dims(graph.emit(value, str(var.name)), TO_NCHW)


def _permute(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    x = _pixels(graph, value.args[0]) if op_name(value) == "permute_dims" else None
    if x is None or not _axes(value):
        return None
    axes = tuple(TO_NCHW[axis] for axis in _axes(value))
    return x if axes == tuple(range(RANK)) else op.permute_dims(x, axes)


def _reshape(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    x = _pixels(graph, value.args[0]) if op_name(value) == "reshape" else None
    shape = None if x is None else shape_of(x)
    if shape is None or min(shape[-1], math.prod(shape[1:-1])) > 1:
        return None
    return op.reshape(x, value.args[1])


def _unary(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    name = op_name(value)
    converts = name in ("quantize", "dequantize") and all(shape_of(scale) == () for scale in value.args[1:])
    x = _pixels(graph, value.args[0]) if name in UNARY or converts else None
    return None if x is None else _back(graph, var, _call(value, [x, *value.args[1:]]))


def _binary(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    if op_name(value) not in BINARY or all(_pixels(graph, side) is None for side in value.args):
        return None
    sides = [_side(graph, side) for side in value.args]
    return None if any(side is None for side in sides) else _back(graph, var, _call(value, sides))


def _side(graph: Rebuild, side: Expr) -> Expr | None:
    """Return an operand in NHWC; None for a value that lies otherwise."""
    x = _pixels(graph, side)
    shape = shape_of(side)
    if x is not None or shape is None:
        return x
    if math.prod(shape) == 1 and len(shape) <= RANK:
        return _view(graph, side, ()) if shape else side
    per_channel = array_of(side) is not None and len(shape) in (RANK - 1, RANK)
    if per_channel and math.prod(shape) == shape[-3]:
        return _view(graph, side, (shape[-3],))
    return None


def _view(graph: Rebuild, x: Expr, shape: Sequence[int]) -> Expr:
    """Emit a view of x."""
    return graph.emit(op.reshape(x, shape))


def _pool(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    pool = POOLS.get(op_name(value))
    x = None if pool is None or value.attrs.layout != "NCHW" else _pixels(graph, value.args[0])
    if pool is None or x is None or value.attrs.out_layout not in ("", "NCHW"):
        return None
    a = value.attrs
    window = ([int(size) for size in each] for each in (a.pool_size, a.strides, a.padding, a.dilation))
    pooled = pool(x, *window, bool(a.ceil_mode), bool(a.count_include_pad), layout="NHWC")
    return _back(graph, var, pooled)


def _reduction(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    reduce = REDUCTIONS.get(op_name(value))
    x = None if reduce is None or value.attrs.axis is None else _pixels(graph, value.args[0])
    if reduce is None or x is None:
        return None
    axes = sorted(int(axis) % RANK for axis in value.attrs.axis)
    reduced = reduce(x, [TO_NCHW[axis] for axis in axes], bool(value.attrs.keepdims))
    if value.attrs.keepdims:
        return _back(graph, var, reduced)
    return reduced if axes == [2, 3] else None


def _concat(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    if op_name(value) != "concat" or not isinstance(value.args[0], relax.Tuple) or value.attrs.axis is None:
        return None
    parts = [_pixels(graph, part) for part in value.args[0].fields]
    if any(part is None for part in parts):
        return None
    return _back(graph, var, op.concat(parts, TO_NCHW[int(value.attrs.axis) % RANK]))


def _call(value: Expr, args: Sequence[Expr]) -> Expr:
    return relax.Call(value.op, list(args), value.attrs, value.ty_args)
