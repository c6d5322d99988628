"""Write chosen scales into the graph: quantize/dequantize after every stored value, int8 weights.

Before:  x -> matmul(W) -> add(b) -> y
After:   dequantize(quantize(x)) -> matmul(dequantize(W_int8)) -> add(b') -> dequantize(quantize(y))
         dequantize(quantize(clip(y, low, high)))        where y's limits are narrower than its dtype
        dequantize(take(nearest code, quantize(y)))     where y is kept in some codes only

The float function changes by rounding only; every number of the quantizer is a constant in the module. Sites
that a plan leaves in float are named in an attribute of main, as between two stored values they look like
others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.formats import Quantization, QuantParams
from tvmq.passes.rebuild import sequence

LEFT_FLOAT = "tvmq.left_float"  # main's attribute: the names of sites that no lowering makes integer
WEIGHT_AXIS = {"relax.matmul": 1, "relax.nn.conv2d": 0, "relax.nn.conv2d_transpose": 1}


@tvm.ir.transform.module_pass(opt_level=0, name="InsertQdq")
class InsertQdq:
    """The pass, with the numbers it writes."""

    def __init__(self, quantization: Quantization) -> None:
        self.quantization = quantization

    if TYPE_CHECKING:  # module_pass makes it callable

        def __call__(self, mod: tvm.IRModule) -> tvm.IRModule: ...

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod at the qdq level."""
        main = _Inserter(mod["main"], self.quantization).run()
        result = mod.clone()
        result.update_func(mod.get_global_var("main"), main)
        return result


class _Inserter:
    def __init__(self, main: relax.Function, quantization: Quantization) -> None:
        self.main = main
        self.numbers = quantization
        self.builder = relax.BlockBuilder()
        self.bindings: list[Any] = []
        self.base: dict[Any, Any] = {}  # old variable -> what consumers read
        self.copy: dict[Any, Any] = {}  # old variable -> its dequantized uint8 copy

    def run(self) -> relax.Function:
        for param in self.main.params:
            self._store(param, param)
        for block in self.main.body.blocks:
            for binding in block.bindings:
                name = binding.var.name
                value = self._weights(name, self._read(name, binding.value))
                new = self._bind(value, name)
                self._store(binding.var, new)
        result = self._substitute(self.main.body.body, {})
        outputs: dict[Any, Any] = {}
        result = self._outputs(result, outputs)
        body = sequence([relax.DataflowBlock(self.bindings)], result)
        main = relax.Function(self.main.params, body, self.main.ret_ty, is_pure=True, attrs=self.main.attrs)
        left = sorted(self.numbers.left_float)
        return main.with_attr(LEFT_FLOAT, left) if left else main

    def _bind(self, value: Any, name: str) -> Any:
        normal = self.builder.normalize(value)
        var = relax.DataflowVar(name, normal.ty)
        self.bindings.append(relax.VarBinding(var, normal))
        return var

    def _store(self, old: Any, new: Any) -> None:
        params = self.numbers.values.get(old.name)
        if params is None:
            if old is not new:
                self.base[old] = new
            return
        self.base[old] = self._pair(new, params, old.name)
        second = self.numbers.also_uint8.get(old.name)
        if second is not None:
            self.copy[old] = self._pair(self.base[old], second, old.name + ".uint8")

    def _pair(self, value: Any, params: QuantParams, name: str) -> Any:
        scale = relax.const(np.float32(params.scale), "float32")
        zero = relax.const(params.zero_point, params.dtype)
        if params.limits is not None:
            value = self._bind(op.clip(value, *params.real_limits), name + ".clip")
        stored = self._bind(op.quantize(value, scale, zero, axis=-1, out_dtype=params.dtype), name + ".q")
        if params.codes is not None:
            nearest = relax.const(numerics.nearest_codes(params.codes))
            stored = self._bind(op.take(nearest, stored), name + ".code")
        return self._bind(op.dequantize(stored, scale, zero, axis=-1), name + ".dq")

    def _read(self, name: str, value: Any) -> Any:
        """Return the value with its operands replaced by what is stored of them."""
        first = self.copy if name in self.numbers.uint8_readers else {}
        value = self._substitute(value, first)
        params = self.numbers.constants.get(name)
        return value if params is None else self._constants(value, params)

    def _substitute(self, expr: Any, first: dict[Any, Any]) -> Any:
        if isinstance(expr, relax.Var):
            return first.get(expr, self.base.get(expr, expr))
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._substitute(f, first) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._substitute(expr.tuple_value, first), expr.index)
        if isinstance(expr, relax.Call):
            args = [self._substitute(a, first) for a in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        return expr

    def _constants(self, call: Any, params: QuantParams) -> Any:
        """Store the constant operands of an add or a concat as the values beside them."""

        def stored(expr: Any) -> Any:
            if isinstance(expr, relax.Tuple):
                return relax.Tuple([stored(f) for f in expr.fields])
            if not isinstance(expr, tvm.ir.GenericConst):
                return expr
            steps = np.floor(expr.value.numpy().astype(np.float64) / params.scale + 0.5) + params.zero_point
            values = relax.const(np.clip(steps, params.low, params.high).astype(params.dtype))
            scale = relax.const(np.float32(params.scale), "float32")
            zero = relax.const(params.zero_point, params.dtype)
            return self._bind(op.dequantize(values, scale, zero, axis=-1), "constant.dq")

        return relax.Call(call.op, [stored(a) for a in call.args], call.attrs, call.ty_args)

    def _weights(self, name: str, value: Any) -> Any:
        weight = self.numbers.weights.get(name)
        if weight is not None:
            axis = WEIGHT_AXIS[value.op.name]
            zero = relax.const(np.zeros(weight.scale.shape, np.int8))
            stored = op.dequantize(relax.const(weight.values), relax.const(weight.scale), zero, axis=axis)
            args = [value.args[0], self._bind(stored, name + ".weight"), *value.args[2:]]
            return relax.Call(value.op, args, value.attrs)
        bias = self.numbers.biases.get(name)
        if bias is not None:
            args = [relax.const(bias) if isinstance(a, tvm.ir.GenericConst) else a for a in value.args]
            return relax.Call(value.op, args, value.attrs)
        return value

    def _outputs(self, expr: Any, made: dict[Any, Any]) -> Any:
        """Return the result with each dataflow variable bound to a plain one, as an output must be."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._outputs(f, made) for f in expr.fields])
        if isinstance(expr, relax.DataflowVar):
            if expr not in made:
                made[expr] = relax.Var(expr.name, expr.ty)
                self.bindings.append(relax.VarBinding(made[expr], expr))
            return made[expr]
        return expr
