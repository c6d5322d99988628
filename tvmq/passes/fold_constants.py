"""Replace what depends on constants alone by its value."""

from __future__ import annotations

import math
from typing import Any

import torch
import tvm
from tvm import relax

from tvmq.passes.constants import constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of
from tvmq.reference_ops import OPERATORS, torch_dtype

# Bicubic weights differ between libraries in the last digits; TVM's own are the ones that ONNX Runtime
# agrees with, and TVM's are what the compiled model would have used.
EVALUATED_BY_TVM = ("image.resize2d",)
LARGEST_RESULT = 1 << 24  # elements; more than that is a tensor to compute, not a constant to store
CREATORS = ("arange", "full", "zeros", "ones")


@tvm.ir.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Evaluate calls on constants; broadcast_to waits until somebody wants the broadcast values.

    Before: lv = permute_dims(W[N, K], axes=[1, 0]); lv1 = matmul(x, lv)
    After:  lv1 = matmul(x, W_transposed[K, N])
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, fold_constant)


def fold_constant(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the value of a call whose operands are all constant."""
    if isinstance(value, tvm.ir.GenericConst):
        return None if graph.is_output(var) else value
    if isinstance(value, relax.TupleGetItem):
        source = graph.value(value.tuple_value)
        return source.fields[value.index] if isinstance(source, relax.Tuple) else None
    name = op_name(value)
    if name not in OPERATORS or name == "broadcast_to" or not _is_small(value):
        return None
    if not value.args or not (name in CREATORS or any(_holds_constant(graph, a) for a in value.args)):
        return None
    if name in EVALUATED_BY_TVM:
        return _by_tvm(value) if all(not isinstance(a, relax.Var) for a in value.args) else None
    try:
        args = [_operand(graph, a) for a in value.args]
        result = OPERATORS[name](args, value.attrs, value)
    except (_NotConstantError, NotImplementedError):
        return None
    return _stored(result, value.ty)


class _NotConstantError(Exception):
    pass


def _is_small(call: Expr) -> bool:
    if isinstance(call.ty, relax.TupleType):
        return True
    shape = shape_of(call)
    return shape is not None and math.prod(shape) <= LARGEST_RESULT


def _holds_constant(graph: Rebuild, arg: Expr) -> bool:
    if isinstance(arg, relax.Tuple):
        return any(_holds_constant(graph, f) for f in arg.fields)
    return isinstance(_source(graph, arg), tvm.ir.GenericConst)


def _source(graph: Rebuild, arg: Expr) -> Expr:
    """Look through a broadcast that was left standing."""
    broadcast = graph.call(arg, "broadcast_to")
    return arg if broadcast is None else broadcast.args[0]


def _operand(graph: Rebuild, arg: Expr) -> Any:
    if isinstance(arg, relax.Tuple):
        return tuple(_operand(graph, f) for f in arg.fields)
    if isinstance(arg, relax.ShapeExpr):
        return tuple(int(v) for v in arg.values)
    if isinstance(arg, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
        return arg.value
    source = _source(graph, arg)
    if not isinstance(source, tvm.ir.GenericConst):
        raise _NotConstantError
    tensor = torch.from_numpy(source.value.numpy())
    return tensor if source is arg else tensor.expand(shape_of(arg) or ())


def _stored(result: Any, ty: Any) -> Expr | None:
    if isinstance(result, tuple):
        fields = [_stored(r, t) for r, t in zip(result, ty.fields, strict=True)]
        return None if any(f is None for f in fields) else relax.Tuple(fields)
    if not isinstance(result, torch.Tensor):
        return None
    return constant(result.to(torch_dtype(str(ty.dtype))).contiguous().numpy())


def _by_tvm(call: Expr) -> Expr:
    """Compile and run one call on the host."""
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        with builder.dataflow():
            out = builder.emit_output(call)
        builder.emit_func_output(out)
    built = relax.build(relax.transform.LegalizeOps()(builder.get()), "llvm")
    result = relax.VirtualMachine(built, tvm.cpu())["main"]()
    return constant(result.numpy())
