"""Let linears run on tensors of their natural rank."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmq.passes.affine import affine_of
from tvmq.passes.constants import array_of, channel_vector, constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of

PER_CHANNEL = ("add", "subtract", "multiply", "divide")


@tvm.ir.transform.module_pass(opt_level=0, name="RestoreLinearRank")
class RestoreLinearRank:
    """Move the 2-D reshape before a linear to after it, and past its bias; weights become [K, N].

    Before: lv = reshape(x[1, 197, 384], [197, 384]); lv1 = matmul(lv, W); lv2 = add(b, lv1)
            lv3 = reshape(lv2, [1, 197, 1152])
    After:  lv1 = matmul(x, W); lv2 = add(lv1, b); lv3 = reshape(lv2, [1, 197, 1152])  (a no-op now)
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, constant_to_the_right, flatten_weight, reshape_after_linear, reshape_after_bias)


def constant_to_the_right(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """add(c, x) -> add(x, c), multiply likewise. The reshape rules see it in the same walk."""
    if op_name(value) not in ("add", "multiply"):
        return None
    left, right = value.args
    if array_of(left) is None or array_of(right) is not None:
        return None
    swapped = relax.Call(value.op, [right, left], value.attrs, value.ty_args, ret_ty=value.ty)
    moved = reshape_after_bias(graph, var, swapped)
    return swapped if moved is None else moved


def flatten_weight(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """matmul(x, W[1, K, N]) -> matmul(x, W[K, N])."""
    weight = array_of(value.args[1]) if op_name(value) == "matmul" else None
    if weight is None or weight.ndim < 3 or any(d != 1 for d in weight.shape[:-2]):
        return None
    if len(value.args[0].ty.shape) < weight.ndim:
        return None
    flat = constant(weight.reshape(weight.shape[-2:]))
    return relax.Call(value.op, [value.args[0], flat], value.attrs, value.ty_args, ret_ty=value.ty)


def reshape_after_linear(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """matmul(reshape(x, [M, K]), W) -> reshape(matmul(x, W), [M, N])."""
    if op_name(value) != "matmul" or array_of(value.args[1]) is None:
        return None
    flat = graph.call(value.args[0], "reshape")
    if flat is None or len(flat.ty.shape) != 2 or len(value.args[1].ty.shape) != 2:
        return None
    shape, rows = shape_of(flat.args[0]), shape_of(flat)
    if shape is None or rows is None or len(shape) < 3 or shape[-1] != rows[-1]:
        return None
    linear = relax.Call(value.op, [flat.args[0], value.args[1]], value.attrs, value.ty_args)
    return relax.op.reshape(graph.emit(linear, var.name), shape_of(value))


def reshape_after_bias(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """add(reshape(linear), c) -> reshape(add(linear, c)) for c of one value per channel; so all four."""
    if op_name(value) not in PER_CHANNEL:
        return None
    reshaped = graph.call(value.args[0], "reshape")
    if reshaped is None or graph.uses(value.args[0]) != 1:
        return None
    linear = affine_of(graph, reshaped.args[0])
    shape = shape_of(reshaped)
    if linear is None or shape is None or shape[-1] != linear.channels or op_name(linear.call) != "matmul":
        return None
    vector = channel_vector(value.args[1], shape[-1], len(shape) - 1, len(shape))
    if vector is None or shape_of(value) != shape:
        return None
    inner = graph.emit(relax.Call(value.op, [reshaped.args[0], constant(vector)], value.attrs), var.name)
    return relax.op.reshape(inner, shape)
