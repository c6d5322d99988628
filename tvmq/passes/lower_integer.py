"""Lower a qdq module to integers: between quantize and dequantize no float op is left.

Before:  dequantize(x) -> matmul(dequantize(W)) -> add(bias) -> quantize
After:   linear_0(x, W, bias_int32, shift)      a private function of plain integer ops (composites.py)

An op is lowered when its operands are stored integers and its result is quantized; anything else, and what
an `ignored` pattern left without quantize/dequantize, stays the float op it was, between a dequantize and a
quantize. The walk keeps operations pending until it meets the quantize that gives them their output scale.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.passes import composites
from tvmq.passes.integer_parameters import attention_parameters, linear_parameters, norm_parameters
from tvmq.passes.layouts import RowsLayout, channels_last
from tvmq.passes.lowering_values import Emitter, Expr, Pending, PendingLinear, Stored, WeightConstant
from tvmq.passes.patches import conv_patches, interleave, transposed_phases
from tvmq.unary import UNARY_FUNCTIONS

VIEW_OPS = {"reshape", "permute_dims", "expand_dims", "squeeze", "strided_slice", "take", "concat"}
BOUNDS = {"nn.relu": (0.0, math.inf), "nn.relu6": (0.0, 6.0)}


@tvm.ir.transform.module_pass(opt_level=0, name="LowerInteger")
class LowerInteger:
    """The pass; idempotent on modules without quantize/dequantize."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod at the integer level."""
        return Lowering(mod["main"]).run()


class Lowering:
    """One walk over main's bindings."""

    def __init__(self, main: relax.Function) -> None:
        self.main = main
        self.emit = Emitter()
        self.env: dict[Expr, Any] = {param: param for param in main.params}
        self.uses = _use_counts(main)

    def run(self) -> tvm.IRModule:
        """Return the lowered module."""
        for block in self.main.body.blocks:
            for binding in block.bindings:
                self.env[binding.var] = self._lower(binding.var, binding.value)
        result = self._float(self.main.body.body)
        return self.emit.finish(self.main, result)

    # one binding

    def _lower(self, var: Expr, value: Expr) -> Any:
        if isinstance(value, relax.Var):
            return self.env[value]
        if not isinstance(value, relax.Call) or not hasattr(value.op, "name"):
            return self._fallback(var.name, value)
        name = value.op.name.removeprefix("relax.")
        handler = getattr(self, "_on_" + name.replace(".", "_"), None)
        operands = tuple(self._operand(arg) for arg in value.args)
        result = None
        if handler is not None:
            result = handler(var.name, value, operands)
        elif name in VIEW_OPS:
            result = self._view(name, value, operands)
        elif name in BOUNDS:
            result = self._bounded(var.name, value, operands, BOUNDS[name])
        elif name.removeprefix("nn.") in UNARY_FUNCTIONS:
            result = self._unary(var.name, value, operands)
        return self._fallback(var.name, value) if result is None else result

    def _operand(self, arg: Expr) -> Any:
        if isinstance(arg, relax.Var):
            return self.env[arg]
        if isinstance(arg, relax.Tuple):
            return tuple(self._operand(f) for f in arg.fields)
        return arg

    # quantize and dequantize

    def _on_dequantize(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Any:
        source, scale, zero = operands
        if isinstance(source, Stored):
            return source
        if isinstance(source, tvm.ir.GenericConst):
            scales, values = scale.value.numpy(), source.value.numpy()
            if scales.ndim == 1:
                return WeightConstant(QuantizedWeight(values, scales), int(call.attrs.axis))
            params = QuantParams(float(scales), int(zero.value.numpy()), str(values.dtype))
            return Stored(params, channels_last(values.shape), dense_var=source)
        return None

    def _on_quantize(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Any:
        source, scale, zero = operands
        params = QuantParams(float(scale.value.numpy()), int(zero.value.numpy()), str(call.attrs.out_dtype))
        if isinstance(source, Stored):
            return self._requantize(name, source, params)
        if isinstance(source, PendingLinear):
            return self._defer(source, params)
        if isinstance(source, Pending):
            done = getattr(self, "_quantize_" + source.kind)(source, params)
            if done is not None:
                return done
        x = self._float_value(source)
        shape = tuple(int(d) for d in x.ty.shape)
        quantized = self.emit(op.quantize(x, *call.args[1:], axis=-1, out_dtype=params.dtype), name)
        return Stored(params, channels_last(shape), dense_var=quantized)

    def _requantize(self, name: str, source: Stored, out: QuantParams) -> Stored | None:
        """Store int16 as uint8 by a rounding shift: the trunk as a linear wants it."""
        if source.params == out:
            return source
        ratio = float(np.float32(source.params.scale)) / float(np.float32(out.scale))
        shift = numerics.power_of_two_exponent(ratio)
        if shift is None or not 0 <= shift <= 16 or source.params.zero_point != 0:
            return None
        wide = self.emit(op.astype(self.emit.rows(source), "int32"))
        half = (1 << shift >> 1) + (out.zero_point << shift)
        moved = self.emit(op.right_shift(self.emit(op.add(wide, _int(half))), _int(shift)))
        low, high = numerics.INTEGER_RANGE[out.dtype]
        stored = self.emit(op.astype(self.emit(op.clip(moved, low, high)), out.dtype), name)
        return Stored(out, source.layout, rows_var=stored)

    # products

    def _on_matmul(self, name: str, call: Expr, operands: tuple[Any, ...]) -> PendingLinear | None:
        x, weight = operands
        if not (isinstance(x, Stored) and isinstance(weight, WeightConstant) and x.params.dtype == "uint8"):
            return None
        last = self.emit.with_layout(x, channels_last(x.layout.shape))
        outputs = weight.weight.values.shape[1]
        layout = RowsLayout(last.layout.rows, len(last.layout.rows), (outputs,))
        return PendingLinear(name, self.emit.rows(last), x.params, weight.weight, layout)

    def _on_nn_conv2d(self, name: str, call: Expr, operands: tuple[Any, ...]) -> PendingLinear | None:
        x, weight = operands
        if not (isinstance(x, Stored) and isinstance(weight, WeightConstant)):
            return None
        rows, matrix, out_rows = conv_patches(self.emit, x, weight.weight.values, call.attrs)
        layout = RowsLayout(out_rows, 1, (matrix.shape[1],))
        return PendingLinear(name, rows, x.params, QuantizedWeight(matrix, weight.weight.scale), layout)

    def _on_nn_conv2d_transpose(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Any:
        x, weight = operands
        if not (isinstance(x, Stored) and isinstance(weight, WeightConstant)):
            return None
        return Pending("phases", name, call, (x, weight, None))

    def _on_add(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Any:
        left, right = operands
        if isinstance(left, tvm.ir.GenericConst) or isinstance(right, (PendingLinear, Pending)):
            left, right = right, left
        if isinstance(left, Pending) and left.kind == "phases" and isinstance(right, tvm.ir.GenericConst):
            return replace(left, operands=(*left.operands[:2], right))
        if isinstance(left, PendingLinear):
            return self._accumulate(left, right)
        if isinstance(left, Stored) and isinstance(right, Stored):
            return Pending("add", name, call, (left, right))
        return None

    def _accumulate(self, linear: PendingLinear, right: Any) -> PendingLinear | None:
        if linear.residual is not None or linear.bounds is not None:
            return None
        if isinstance(right, tvm.ir.GenericConst) and linear.bias is None:
            values = right.value.numpy()
            if values.size != linear.weight.values.shape[1]:
                return None
            return replace(linear, bias=values.astype(np.float64).ravel())
        if isinstance(right, Stored) and right.params.dtype == "int16":
            if right.layout.shape != linear.layout.shape:
                return None
            return replace(linear, residual=self.emit.with_layout(right, linear.layout))
        return None

    def _bounded(self, name: str, call: Expr, operands: tuple[Any, ...], bounds: tuple[float, float]) -> Any:
        source = operands[0]
        if isinstance(source, PendingLinear) and source.bounds is None:
            return source.bounded(*bounds)
        if isinstance(source, Pending) and source.kind in ("add", "phases"):
            return replace(source, bounds=bounds)
        return self._unary(name, call, operands)

    def _defer(self, linear: PendingLinear, out: QuantParams) -> Stored:
        """Return the product's stored value, emitted on first use: a table may still join it."""
        stored = Stored(out, linear.layout, pending=linear)
        stored.force = lambda: self._emit_linear(linear, out, None)
        return stored

    def _emit_linear(self, linear: PendingLinear, out: QuantParams | None, table: Any) -> Expr:
        numbers = linear_parameters(linear.site, linear.x_params, linear.weight, linear.bias, out)
        inputs, outputs = linear.weight.values.shape
        residual = linear.residual if out is not None else None
        clip = _clip_range(out, linear.bounds) if out is not None else (0, 0)
        func = composites.linear(
            linear.site,
            rows=linear.layout.matrix[0],
            inputs=inputs,
            outputs=outputs,
            in_dtype=linear.x_params.dtype,
            out_dtype="float32" if out is None else out.dtype,
            low=clip[0],
            high=clip[1],
            zero_point=out.zero_point if out is not None and numbers.fixed_point else 0,
            fixed_point=numbers.fixed_point,
            residual=residual is not None,
            table=table is not None,
        )
        args = [linear.x, _const(linear.weight.values), _const(numbers.bias), *map(_const, numbers.rescale)]
        args += [self.emit.rows(residual)] if residual is not None else []
        args += [_const(table)] if table is not None else []
        return self.emit.composite(func, args, linear.site)

    def _quantize_phases(self, pending: Pending, out: QuantParams) -> Stored:
        x, weight, bias = pending.operands
        size, strides, products = transposed_phases(self.emit, x, weight.weight.values, pending.call.attrs)
        channels = weight.weight.values.shape[1]
        parts = []
        for index, (patches, matrix) in enumerate(products):
            linear = PendingLinear(
                f"{pending.site}.phase{index}",
                patches,
                x.params,
                QuantizedWeight(matrix, weight.weight.scale),
                channels_last((*size, channels)),
                None if bias is None else bias.value.numpy().astype(np.float64).ravel(),
                bounds=pending.bounds,
            )
            parts.append(self._emit_linear(linear, out, None))
        return interleave(self.emit, parts, size, strides, out)

    # everything else

    def _on_nn_layer_norm(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Pending | None:
        x = operands[0]
        last = [int(a) for a in call.attrs.axes] in ([-1], [len(call.ty.shape) - 1])
        if isinstance(x, Stored) and x.params.dtype == "int16" and last:
            return Pending("layer_norm", name, call, operands)
        return None

    def _quantize_layer_norm(self, pending: Pending, out: QuantParams) -> Stored:
        x, gamma, beta = pending.operands
        x = self.emit.with_layout(x, channels_last(x.layout.shape))
        numbers = norm_parameters(
            pending.site,
            gamma.value.numpy().astype(np.float64),
            beta.value.numpy().astype(np.float64),
            float(pending.call.attrs.epsilon),
            x.params,
            out,
        )
        rows, channels = x.layout.matrix
        low, high = numerics.INTEGER_RANGE[out.dtype]
        func = composites.layer_norm(
            pending.site,
            rows=rows,
            channels=channels,
            out_dtype=out.dtype,
            low=low,
            high=high,
            gain_shift=numbers.gain_shift,
            epsilon=numbers.epsilon,
            limit=numbers.limit,
        )
        args = [self.emit.rows(x), _const(numbers.gain), _const(numbers.offset)]
        return Stored(out, x.layout, rows_var=self.emit.composite(func, args, pending.site))

    def _on_nn_attention(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Pending | None:
        if all(isinstance(x, Stored) and x.params.dtype == "int8" for x in operands[:3]):
            return Pending("attention", name, call, operands[:3])
        return None

    def _quantize_attention(self, pending: Pending, out: QuantParams) -> Stored | None:
        q, k, v = (self.emit.with_layout(x, channels_last(x.layout.shape, 2)) for x in pending.operands)
        batch, queries, heads, head_dim = q.layout.shape
        keys = k.layout.shape[1]
        scale = pending.call.attrs.scale
        numbers = attention_parameters(
            q.params, k.params, v.params, out, head_dim**-0.5 if scale is None else float(scale)
        )
        if numbers is None:
            return None
        func = composites.attention(
            pending.site,
            batch=batch,
            heads=heads,
            queries=queries,
            keys=keys,
            head_dim=head_dim,
            score_shift=numbers.score_shift,
            numerator=numbers.numerator,
            norm_shift=numbers.norm_shift,
            zero_point=out.zero_point,
            out_dtype=out.dtype,
        )
        args = [*(self.emit.rows(x) for x in (q, k, v)), _const(numerics.softmax_table())]
        return Stored(out, q.layout, rows_var=self.emit.composite(func, args, pending.site))

    def _unary(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Pending | None:
        x = operands[0]
        if isinstance(x, Stored) and x.params.dtype == "uint8":
            return Pending("unary", name, call, (x, self.uses[call.args[0]]))
        return None

    def _quantize_unary(self, pending: Pending, out: QuantParams) -> Stored | None:
        if out.dtype != "uint8":
            return None
        x, uses = pending.operands
        function = UNARY_FUNCTIONS[pending.call.op.name.split(".")[-1]]
        table = numerics.unary_table(
            function,
            float(np.float32(x.params.scale)),
            x.params.zero_point,
            float(np.float32(out.scale)),
            out.zero_point,
        )
        if x.pending is not None and x.rows_var is None and uses == 1:
            return Stored(out, x.layout, rows_var=self._emit_linear(x.pending, x.params, table))
        func = composites.table(pending.site, shape=x.layout.matrix)
        looked_up = self.emit.composite(func, [self.emit.rows(x), _const(table)], pending.site)
        return Stored(out, x.layout, rows_var=looked_up)

    def _quantize_add(self, pending: Pending, out: QuantParams) -> Stored | None:
        left, right = pending.operands
        if not (left.params == right.params == out and out.dtype == "int16" and out.zero_point == 0):
            return None
        if left.layout.shape == right.layout.shape:
            layout = left.layout
            right = self.emit.with_layout(right, layout)
            a, b = self.emit.rows(left), self.emit.rows(right)
        else:  # a constant that broadcasts
            layout = channels_last(tuple(int(d) for d in pending.call.ty.shape))
            a, b = self.emit.dense(left), self.emit.dense(right)
        total = self.emit(op.add(self.emit(op.astype(a, "int32")), self.emit(op.astype(b, "int32"))))
        low, high = _clip_range(out, pending.bounds)
        stored = self.emit(op.astype(self.emit(op.clip(total, low, high)), "int16"), pending.site)
        if left.layout.shape == right.layout.shape:
            return Stored(out, layout, rows_var=stored)
        return Stored(out, layout, dense_var=stored)

    # views

    def _view(self, name: str, call: Expr, operands: tuple[Any, ...]) -> Stored | None:
        if name == "concat":
            return self._concat(call, operands[0])
        x = operands[0]
        if not isinstance(x, Stored):
            return None
        layout = None
        if name in ("reshape", "expand_dims", "squeeze"):
            layout = x.layout.reshaped(tuple(int(d) for d in call.ty.shape))
        elif name == "permute_dims" and call.attrs.axes is not None:
            layout = x.layout.permuted([int(a) for a in call.attrs.axes])
        if layout is not None:
            return Stored(x.params, layout, rows_var=self.emit.rows(x))
        moved = self.emit(relax.Call(call.op, [self.emit.dense(x), *call.args[1:]], call.attrs))
        return Stored(x.params, channels_last(tuple(int(d) for d in call.ty.shape)), dense_var=moved)

    def _concat(self, call: Expr, parts: Any) -> Stored | None:
        if not all(isinstance(p, Stored) and p.params == parts[0].params for p in parts):
            return None
        joined = self.emit(op.concat([self.emit.dense(p) for p in parts], axis=int(call.attrs.axis)))
        shape = tuple(int(d) for d in call.ty.shape)
        return Stored(parts[0].params, channels_last(shape), dense_var=joined)

    # float

    def _fallback(self, name: str, value: Expr) -> Expr:
        """Emit the op as it stands, on float operands."""
        return self.emit(self._float(value), name)

    def _float(self, expr: Expr) -> Expr:
        if isinstance(expr, relax.Var):
            return self._float_value(self.env[expr])
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._float(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._float(expr.tuple_value), expr.index)
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self._float(a) for a in expr.args], expr.attrs, expr.ty_args)
        return expr

    def _float_value(self, value: Any) -> Expr:
        if isinstance(value, Stored):
            if value.float_var is None:
                zero = relax.const(value.params.zero_point, value.params.dtype)
                scale = relax.const(np.float32(value.params.scale), "float32")
                value.float_var = self.emit(op.dequantize(self.emit.dense(value), scale, zero, axis=-1))
            return value.float_var
        if isinstance(value, PendingLinear):
            return self._float_linear(value)
        if isinstance(value, Pending):
            return self._float_pending(value)
        if isinstance(value, WeightConstant):
            scale = relax.const(value.weight.scale)
            zeros = relax.const(np.int8(0), "int8")
            return self.emit(op.dequantize(_const(value.weight.values), scale, zeros, axis=value.axis))
        return value

    def _float_linear(self, linear: PendingLinear) -> Expr:
        product = self._emit_linear(linear, None, None)
        holder = Stored(linear.x_params, linear.layout, rows_var=product)
        y = self.emit.dense(holder)
        if linear.residual is not None:
            y = self.emit(op.add(y, self._float_value(linear.residual)))
        if linear.bounds is not None:
            y = self.emit(_float_clip(y, linear.bounds))
        return y

    def _float_pending(self, pending: Pending) -> Expr:
        """Emit the op as it stood, on dequantized operands."""
        call = pending.call
        pairs = zip(pending.operands, call.args, strict=False)
        args = [self._float_value(v) if isinstance(v, FOLDED) else arg for v, arg in pairs]
        args = args[: len(call.args)] + list(call.args[len(args) :])
        y = self.emit(relax.Call(call.op, args, call.attrs), pending.site)
        if pending.kind == "phases" and pending.operands[2] is not None:
            y = self.emit(op.add(y, pending.operands[2]))
        return self.emit(_float_clip(y, pending.bounds)) if pending.bounds is not None else y


FOLDED = (Stored, WeightConstant)


def _int(value: int) -> Expr:
    return relax.const(value, "int32")


def _const(values: Any) -> Expr:
    return relax.const(np.ascontiguousarray(values))


def _clip_range(out: QuantParams, bounds: tuple[float, float] | None) -> tuple[int, int]:
    low, high = numerics.INTEGER_RANGE[out.dtype]
    if bounds is None:
        return low, high
    top = high if math.isinf(bounds[1]) else out.zero_point + math.floor(bounds[1] / out.scale + 0.5)
    return max(low, out.zero_point + round(bounds[0] / out.scale)), min(high, top)


def _float_clip(y: Expr, bounds: tuple[float, float]) -> Expr:
    return op.nn.relu(y) if math.isinf(bounds[1]) else op.clip(y, *bounds)


def _use_counts(main: relax.Function) -> dict[Expr, int]:
    """Count readers of each variable, a quantize and its one dequantize taken as one value."""
    counts: dict[Expr, int] = {}

    def read(expr: Expr) -> None:
        if isinstance(expr, relax.Var):
            counts[expr] = counts.get(expr, 0) + 1
        elif isinstance(expr, relax.Tuple):
            for f in expr.fields:
                read(f)
        elif isinstance(expr, relax.TupleGetItem):
            read(expr.tuple_value)
        elif isinstance(expr, relax.Call):
            for arg in expr.args:
                read(arg)

    for block in main.body.blocks:
        for binding in block.bindings:
            read(binding.value)
    read(main.body.body)
    return counts
