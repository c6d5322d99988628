"""Remove and merge operations that only rearrange."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.constants import array_of, scalar_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, dtype_of, op_name, rebuild, shape_of

RESHAPES = ("reshape", "squeeze", "expand_dims", "flatten")
SAME_IF_TYPE_IS = (*RESHAPES, "broadcast_to", "astype", "strided_slice", "nn.pad")
ELEMENTWISE = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "where", "bitwise_and")
NEUTRAL = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0}


@tvm.ir.transform.module_pass(opt_level=0, name="RemoveNoOps")
class RemoveNoOps:
    """Drop reshapes, broadcasts, casts, slices and permutations that change nothing; merge the others.

    Before: lv = reshape(x[1, 6, 4], [6, 4]); lv1 = reshape(lv, [3, 8]); lv2 = broadcast_to(lv1, [3, 8])
    After:  lv1 = reshape(x, [3, 8])

    Before: lv = permute_dims(x, [2, 0, 1]); lv1 = permute_dims(lv, [1, 2, 0])
    After:  x
    squeeze, expand_dims and flatten become reshape, as does a permutation that moves only axes of size 1.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, *RULES)


def drop_identity(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """x for a call that returns its first operand unchanged."""
    name = op_name(value)
    if name in SAME_IF_TYPE_IS and _same_type(value, value.args[0]):
        return value.args[0]
    neutral = NEUTRAL.get(name)
    if neutral is not None and scalar_of(value.args[1]) == neutral and _same_type(value, value.args[0]):
        return value.args[0]
    if name in ("bitwise_and", "logical_and") and _same_type(value, value.args[1]):
        seen = array_of(value.args[0])
        return value.args[1] if seen is not None and seen.dtype == bool and seen.all() else None
    return None


def take_known_item(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """The field of a known tuple, the input of a dropout, what a second name was given to."""
    if isinstance(value, relax.Var):
        return value
    if isinstance(value, tvm.ir.GenericConst) and not graph.is_output(var):
        return value
    if not isinstance(value, relax.TupleGetItem):
        return None
    source = graph.value(value.tuple_value)
    if isinstance(source, relax.Tuple):
        return source.fields[value.index]
    return source.args[0] if op_name(source) == "nn.dropout" and value.index == 0 else None


def merge_reshape(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """One reshape of the source for a reshape of reshapes; identity permutations count as reshapes."""
    name = op_name(value)
    shape = shape_of(value) if name in (*RESHAPES, "permute_dims") else None
    if shape is None or (name == "permute_dims" and not _keeps_order(value)):
        return None
    source = value.args[0]
    inner = graph.call(source, "reshape")
    if inner is not None:
        source = inner.args[0]
    elif name == "reshape":
        return None
    return source if shape_of(source) == shape else relax.op.reshape(source, shape)


def merge_permutation(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """One permutation for a permutation of a permutation."""
    if op_name(value) != "permute_dims":
        return None
    inner = graph.call(value.args[0], "permute_dims")
    if inner is None:
        return None
    first, second = permutation(inner), permutation(value)
    merged = [first[a] for a in second]
    if merged == sorted(merged):
        return inner.args[0]
    return relax.op.permute_dims(inner.args[0], merged)


def index_everything(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """A reshape for an index_tensor that picks every element once, in order (how torch slices a mask)."""
    if op_name(value) != "index_tensor" or shape_of(value) is None:
        return None
    shape, indices = shape_of(value.args[0]), getattr(value.args[1], "fields", ())
    grids = [g for g in map(array_of, indices) if g is not None]
    if shape is None or len(grids) != len(shape):
        return None
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    flat = np.asarray(sum(g * s for g, s in zip(grids, strides, strict=True))).reshape(-1)
    everything = flat.size == math.prod(shape) and bool((flat == np.arange(flat.size)).all())
    if not everything:
        return None
    return value.args[0] if shape_of(value) == shape else relax.op.reshape(value.args[0], shape_of(value))


def drop_broadcast(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """An operation that broadcasts by itself, without the explicit broadcast of its operand."""
    name = op_name(value)
    if name not in (*ELEMENTWISE, "matmul"):
        return None
    sources = [graph.call(a, "broadcast_to") for a in value.args]
    for i, source in enumerate(sources):
        if source is None:
            continue
        args = list(value.args)
        args[i] = source.args[0]
        shapes = [shape_of(a) for a in args]
        if name == "matmul" and any(s is None or len(s) < 2 for s in shapes):
            continue
        slim = relax.BlockBuilder().normalize(relax.Call(value.op, args, value.attrs, value.ty_args))
        if _same_type(slim, value):
            return slim
    return None


RULES = (drop_identity, take_known_item, merge_reshape, merge_permutation, index_everything, drop_broadcast)


def permutation(call: Expr) -> list[int]:
    """Return the axes of a permute_dims, all of them non-negative."""
    rank = len(shape_of(call) or ())
    axes = call.attrs.axes
    return list(reversed(range(rank))) if axes is None else [int(a) % rank for a in axes]


def _keeps_order(call: Expr) -> bool:
    shape = shape_of(call.args[0])
    if shape is None:
        return False
    moved = [a for a in permutation(call) if shape[a] != 1]
    return moved == sorted(moved)


def _same_type(a: Expr, b: Expr) -> bool:
    return (
        isinstance(a.ty, relax.TensorType)
        and shape_of(a) is not None
        and shape_of(a) == shape_of(b)
        and dtype_of(a) == dtype_of(b)
    )
