"""Lower a qdq module to integers: between quantize and dequantize no float op is left.

Before:  dequantize(x) -> matmul(dequantize(W)) -> add(bias) -> quantize
After:   linear_0(x, W, bias_int32, shift)      a private function of plain integer ops (composites.py)

An op is lowered when its operands are stored integers and its result is quantized; anything else, and what
main's attribute LEFT_FLOAT names, stays the float op it was, between a dequantize and a quantize.
The walk keeps operations pending until it meets the quantize that gives them their output scale:
lower_products.py, lower_attention.py and lower_sites.py hold the operations, lower_views.py what only moves
values, lower_float.py the way back to float.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.errors import UnsupportedModelError
from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.passes import lower_attention, lower_pools, lower_products, lower_sites, lower_views
from tvmq.passes.composite_body import integer
from tvmq.passes.composites import attributes
from tvmq.passes.insert_qdq import LEFT_FLOAT
from tvmq.passes.layouts import channels_last
from tvmq.passes.lower_float import float_call, float_value
from tvmq.passes.lowering_values import (
    Bounds,
    Emitter,
    Expr,
    Pending,
    PendingLinear,
    QdqCall,
    Stored,
    WeightConstant,
    within,
)
from tvmq.passes.pool_windows import POOLS
from tvmq.passes.rebuild import bindings, op_name, used_vars
from tvmq.passes.unary_chains import Chain, chains_of
from tvmq.unary import UNARY_FUNCTIONS, unary_name

Handler = Callable[[Emitter, QdqCall], Any]  # returns None where the op stays float
STORED = ("uint8", "int8", "int16")


@tvm.ir.transform.module_pass(opt_level=0, name="LowerInteger")
class LowerInteger:
    """The pass; a module that holds composites is lowered already and comes back as it is."""

    if TYPE_CHECKING:  # module_pass makes it callable

        def __call__(self, mod: tvm.IRModule) -> tvm.IRModule: ...

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod at the integer level; UnsupportedModelError if main is not its only function."""
        others = {str(gvar.name_hint): func for gvar, func in mod.functions.items()}
        main = others.pop("main")
        if any(attributes(func) for func in others.values()):
            return mod
        if others:
            raise UnsupportedModelError(
                f"{next(iter(others))}: is a function beside main, integer lowering wants main alone; "
                "inline it first, e.g. with relax.transform.InlinePrivateFunctions"
            )
        return Lowering(main).run()


class Lowering:
    """One walk over main's bindings."""

    def __init__(self, main: relax.Function) -> None:
        self.main = main
        self.emit = Emitter()
        self.env: dict[Expr, Any] = {param: param for param in main.params}
        self.left = set(map(str, (main.attrs or {}).get(LEFT_FLOAT, ())))
        self.chains = chains_of(main)
        whole = self.chains.inside.union(self.chains.by_result)
        plain = (b.value for b in bindings(main) if b.var not in whole)
        self.readers = Counter(var for value in plain for var in used_vars(value))
        self.readers.update(chain.source for chain in self.chains.by_result.values())
        self.readers.update(used_vars(main.body.body))

    def run(self) -> tvm.IRModule:
        """Return the lowered module."""
        for binding in bindings(self.main):
            chain = self.chains.by_result.get(binding.var)
            if chain is not None:
                self.env[binding.var] = self._lower_chain(binding.var.name, binding.value, chain)
            elif binding.var not in self.chains.inside:
                self.env[binding.var] = self._lower(binding.var.name, binding.value)
        result = float_value(self.emit, self._operand(self.main.body.body))
        return self.emit.finish(self.main.without_attr(LEFT_FLOAT) if self.left else self.main, result)

    def _lower(self, name: str, value: Expr) -> Any:
        if isinstance(value, relax.Var):
            return self.env[value]
        if not isinstance(value, relax.Call):
            return self.emit(float_value(self.emit, self._operand(value)), name)
        operands = tuple(self._operand(arg) for arg in value.args)
        first = next((arg for arg in value.args if isinstance(arg, relax.Var)), None)
        source = QdqCall(name, value, operands, 0 if first is None else self.readers[first])
        handler = None if name in self.left else HANDLERS.get(op_name(value))
        result = None if handler is None else handler(self.emit, source)
        return float_call(self.emit, source) if result is None else result

    def _lower_chain(self, name: str, value: Expr, chain: Chain) -> Any:
        source = QdqCall(name, value, (self.env[chain.source],), self.readers[chain.source], chain)
        whole = None if name in self.left else lower_sites.unary(self.emit, source)
        return whole or float_call(self.emit, source)

    def _operand(self, arg: Expr) -> Any:
        """Return what an argument has become; a tuple's fields one by one."""
        if isinstance(arg, relax.Var):
            return self.env[arg]
        if isinstance(arg, relax.Tuple):
            return tuple(self._operand(field) for field in arg.fields)
        if isinstance(arg, relax.TupleGetItem):
            return relax.TupleGetItem(float_value(self.emit, self._operand(arg.tuple_value)), arg.index)
        return arg


def _dequantize(emit: Emitter, source: QdqCall) -> Any:
    stored, scale, zero = source.operands
    if isinstance(stored, Stored):
        params = _params(scale, zero, stored.params.dtype)
        if params is not None and params.aligned(stored.params):
            return stored
        if params is not None:
            params = replace(params, limits=stored.params.limits)
            return Stored(params, stored.layout, rows_var=emit.rows(stored))
        args = [emit.dense(stored), scale, zero]
        return emit(relax.Call(source.call.op, args, source.call.attrs), source.name)
    if not all(isinstance(operand, tvm.ir.GenericConst) for operand in source.operands):
        return None
    if str(stored.ty.dtype) == "int32":
        return _bias(source)
    params = _params(scale, zero, str(stored.ty.dtype))
    if params is not None:
        return Stored(params, channels_last(tuple(int(d) for d in stored.ty.shape)), dense_var=stored)
    return _weight(source)


def _bias(source: QdqCall) -> Expr:
    """Return the float constant that an int32 constant stands for: how other toolkits store biases."""
    values, scale, zero = (operand.value.numpy() for operand in source.operands)
    shape = [1] * values.ndim
    if scale.ndim:
        shape[int(source.call.attrs.axis)] = -1
    real = (values - zero.reshape(shape)).astype(np.float64) * scale.reshape(shape)
    return relax.const(real.astype(np.float32).reshape(values.shape))


def _weight(source: QdqCall) -> WeightConstant | None:
    """Return an int8 constant with one scale per channel, None for any other constant."""
    values, scale, zero = (operand.value.numpy() for operand in source.operands)
    if values.dtype != np.int8 or scale.ndim != 1 or zero.any() or not (scale > 0).all():
        return None
    return WeightConstant(QuantizedWeight(values, scale), int(source.call.attrs.axis))


def _quantize(emit: Emitter, source: QdqCall) -> Stored | None:
    value, scale, zero = source.operands
    out = _params(scale, zero, str(source.call.attrs.out_dtype))
    if out is None:
        return None
    done = None
    if isinstance(value, PendingLinear | Pending):
        out = within(out, value.bounds)
    if isinstance(value, Stored):
        done = _requantize(emit, source.name, value, out)
    elif isinstance(value, PendingLinear):
        done = lower_products.defer(emit, value, out)
    elif isinstance(value, Pending):
        done = QUANTIZE[value.kind](emit, value, out)
    if done is not None:
        return done
    x = float_value(emit, value)
    clip = emit.value(x)
    out = within(out, _bounds(clip)) if isinstance(clip, relax.Call) else out
    quantized = emit(op.quantize(x, scale, zero, axis=-1, out_dtype=out.dtype), source.name)
    return Stored(out, channels_last(source.shape), dense_var=quantized)


def _params(scale: Expr, zero: Expr, dtype: str) -> QuantParams | None:
    """Return per-tensor parameters, None where they are per channel, not constant, or no scale."""
    known = all(isinstance(c, tvm.ir.GenericConst) and len(c.ty.shape) == 0 for c in (scale, zero))
    if not known or dtype not in STORED or not 0.0 < float(scale.value.numpy()) < math.inf:
        return None
    return QuantParams(float(scale.value.numpy()), int(zero.value.numpy()), dtype)


def _requantize(emit: Emitter, name: str, source: Stored, out: QuantParams) -> Stored | None:
    """Store int16 as uint8 by a rounding shift: the trunk as a linear wants it."""
    if source.params.aligned(out):
        return _limited(emit, name, source, out)
    ratio = float(np.float32(source.params.scale)) / float(np.float32(out.scale))
    shift = numerics.power_of_two_exponent(ratio)
    if shift is None or not 0 <= shift <= 16 or source.params.zero_point != 0:
        return None
    copied = lower_products.with_copy(emit, name, source, out, shift)
    copied = copied or lower_sites.with_copy(emit, name, source, out, shift)
    if copied is not None:
        return copied
    wide = emit(op.astype(emit.rows(source), "int32"))
    half = (1 << shift >> 1) + (out.zero_point << shift)
    moved = emit(op.right_shift(emit(op.add(wide, integer(half))), integer(shift)))
    stored = emit(op.astype(emit(op.clip(moved, out.low, out.high)), out.dtype), name)
    return Stored(out, source.layout, rows_var=stored)


def _limited(emit: Emitter, name: str, source: Stored, out: QuantParams) -> Stored:
    """Return a value that is stored as out is, but for its limits."""
    if out.low <= source.params.low and source.params.high <= out.high:
        return source
    return Stored(out, source.layout, rows_var=emit(op.clip(emit.rows(source), out.low, out.high), name))


def _add(emit: Emitter, source: QdqCall) -> PendingLinear | Pending | None:
    left, right = source.operands
    if isinstance(left, tvm.ir.GenericConst) or isinstance(right, PendingLinear | Pending):
        left, right = right, left
    if isinstance(left, PendingLinear):
        return lower_products.accumulate(emit, left, right)
    if isinstance(left, Pending) and left.kind == "conv2d_transpose":
        return lower_products.transposed_bias(left, right)
    if isinstance(left, Stored) and isinstance(right, Stored):
        return Pending("add", source)
    return None


def _take(emit: Emitter, source: QdqCall) -> Stored | Pending | None:
    return (
        lower_views.view(emit, source)
        or lower_sites.embedding(emit, source)
        or lower_sites.nearest_codes(emit, source)
    )


def _bounded(emit: Emitter, source: QdqCall) -> PendingLinear | Pending | None:
    """Let a clip join the operation before it, or be a table or a clip of what is stored."""
    value = source.operands[0]
    bounds = _bounds(source.call)
    if bounds is None:
        return None
    if isinstance(value, PendingLinear) or (isinstance(value, Pending) and _joins(value, source)):
        return value.bounded(bounds, source.name)
    if not isinstance(value, Stored):
        return None
    known = unary_name(source.call.op.name, source.call.args) in UNARY_FUNCTIONS
    table = lower_sites.unary(emit, source) if known else None
    return table or Pending("clip", source)


def _joins(pending: Pending, clip: QdqCall) -> bool:
    """Tell whether a clip joins the operation before it: what others read too may have to be float."""
    return pending.kind in ("add", "conv2d_transpose") or clip.readers == 1


def _bounds(call: Expr) -> Bounds | None:
    """Return what a relu or a clip by constants keeps a value within, None for any other call."""
    name = op_name(call)
    if name == "nn.relu":
        return 0.0, math.inf
    if name != "clip":
        return None
    low, high = (float(bound.value) for bound in call.args[1:])
    return (low, high) if low <= high else None


def _quantize_clip(emit: Emitter, pending: Pending, out: QuantParams) -> Stored | None:
    """Store a stored value again, within limits; by a table where no shift does it."""
    source, call = pending.source, pending.source.call
    done = _requantize(emit, source.name, source.operands[0], within(out, _bounds(call)))
    if done is not None or source.operands[0].params.dtype != "uint8":
        return done
    chain = Chain(call.args[0], ((relax.Var(source.name, call.ty), call),))
    return lower_sites.quantize_unary(emit, Pending("unary", replace(source, chain=chain)), out)


HANDLERS: Mapping[str, Handler] = {
    **{f"nn.{name}": lower_sites.unary for name in UNARY_FUNCTIONS},
    **{name: lower_sites.unary for name in UNARY_FUNCTIONS},
    **dict.fromkeys(("nn.relu", "clip"), _bounded),
    **dict.fromkeys(("reshape", "permute_dims", "expand_dims", "squeeze", "strided_slice"), lower_views.view),
    "take": _take,
    "concat": lower_views.concat,
    "nn.pad": lower_views.pad,
    "dequantize": _dequantize,
    "quantize": _quantize,
    "matmul": lower_products.matmul,
    "nn.conv2d": lower_products.conv2d,
    "nn.conv2d_transpose": lower_products.conv2d_transpose,
    **dict.fromkeys((*(f"nn.{name}" for name in POOLS), "mean"), lower_pools.pooling),
    "nn.layer_norm": lower_sites.layer_norm,
    **dict.fromkeys(("nn.attention", "nn.attention_bias"), lower_attention.attention),
    "where": lower_attention.hidden_rows,
    "add": _add,
}

QUANTIZE: Mapping[str, Callable[[Emitter, Pending, QuantParams], Stored | None]] = {
    "conv2d_transpose": lower_products.quantize_transposed,
    "pool": lower_pools.quantize_pool,
    "layer_norm": lower_sites.quantize_layer_norm,
    "attention": lower_attention.quantize_attention,
    "unary": lower_sites.quantize_unary,
    "add": lower_sites.quantize_add,
    "embedding": lower_sites.quantize_embedding,
    "clip": _quantize_clip,
}
