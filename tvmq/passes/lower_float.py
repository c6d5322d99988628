"""Turn what is stored or pending back into float: the way out of the integer level for any operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmq.passes.lower_products import emit_linear
from tvmq.passes.lowering_values import (
    Emitter,
    Expr,
    Pending,
    PendingLinear,
    QdqCall,
    Stored,
    WeightConstant,
    constant,
)
from tvmq.passes.rebuild import substitute
from tvmq.passes.unary_chains import Chain


def float_call(emit: Emitter, source: QdqCall) -> Expr:
    """Emit the call, or the chain, as it stood in the qdq module, on float operands."""
    call = source.call
    args = [float_value(emit, operand) for operand in source.operands]
    if source.chain is not None:
        return _float_chain(emit, source.chain, args[0])
    return emit(relax.Call(call.op, args, call.attrs, call.ty_args), source.name)


def _float_chain(emit: Emitter, chain: Chain, x: Expr) -> Expr:
    values: dict[Expr, Expr] = {chain.source: x}
    for var, call in chain.steps:
        values[var] = emit(substitute(call, values), str(var.name))
    return values[chain.steps[-1][0]]


def float_value(emit: Emitter, value: Any) -> Expr:
    """Return the float form of an operand; what is no quantized value is returned as it is."""
    if isinstance(value, tuple):
        return relax.Tuple([float_value(emit, field) for field in value])
    if isinstance(value, Stored):
        return _dequantized(emit, value)
    if isinstance(value, PendingLinear | Pending):
        if value not in emit.float_vars:
            emit.float_vars[value] = (
                _float_linear(emit, value)
                if isinstance(value, PendingLinear)
                else _float_pending(emit, value)
            )
        return emit.float_vars[value]
    if isinstance(value, WeightConstant):
        scale, zero = relax.const(value.weight.scale), relax.const(np.zeros_like(value.weight.scale, np.int8))
        return emit(op.dequantize(constant(value.weight.values), scale, zero, axis=value.axis))
    return value


def _dequantized(emit: Emitter, value: Stored) -> Expr:
    if value.float_var is None:
        zero = relax.const(value.params.zero_point, value.params.dtype)
        scale = relax.const(np.float32(value.params.scale), "float32")
        value.float_var = emit(op.dequantize(emit.dense(value), scale, zero, axis=-1))
    return value.float_var


def _float_linear(emit: Emitter, linear: PendingLinear) -> Expr:
    product = emit_linear(emit, linear, None)
    y = emit.dense(Stored(linear.x_params, linear.layout, rows_var=product))
    if linear.residual is not None:
        y = emit(op.add(y, _dequantized(emit, linear.residual)))
    return _clipped(emit, y, linear)


def _float_pending(emit: Emitter, pending: Pending) -> Expr:
    y = float_call(emit, pending.source)
    if pending.bias is not None:
        y = emit(op.add(y, pending.bias))
    return _clipped(emit, y, pending)


def _clipped(emit: Emitter, y: Expr, value: PendingLinear | Pending) -> Expr:
    if value.bounds is None:
        return y
    relu = value.bounds == (0.0, math.inf)
    return emit(op.nn.relu(y) if relu else op.clip(y, *value.bounds), value.clip)
