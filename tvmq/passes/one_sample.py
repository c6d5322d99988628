"""The model of one sample, where a batch is nothing but samples side by side.

Kernel by kernel, a large batch leaves the second cache level between any two kernels; sample by sample its
values stay there. Batches come first in every shape, so a value of n samples has n times the rows of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.rebuild import Expr, Var, bindings, op_name, shape_of

Shape = tuple[int, ...]


class _MixedError(Exception):
    """Samples are mixed, or in an order that is not followed."""


def batch_of(mod: tvm.IRModule) -> int:
    """Return the first dimension of all inputs and outputs of a module, 1 where they do not share it."""
    main = mod["main"]
    ty = main.ret_ty
    types = [*(p.ty for p in main.params), *(ty.fields if isinstance(ty, relax.TupleType) else [ty])]
    firsts = {shape[0] if (shape := _shape(each)) else 1 for each in types}
    return firsts.pop() if len(firsts) == 1 else 1


def one_sample(mod: tvm.IRModule) -> tvm.IRModule | None:
    """Return a canonical module for one of the samples of its batch; None where samples are mixed.

    Bindings keep their names. Shapes decide, and what constants say: whoever uses the result compares values.
    """
    samples, main = batch_of(mod), mod["main"]
    if samples == 1:
        return None
    try:
        func = _Slicer(samples).function(main)
    except _MixedError:
        return None
    result = mod.clone()
    result.update_func(mod.get_global_var("main"), func)
    return result


class _Slicer:
    """Rewrites a function binding by binding."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.builder = relax.BlockBuilder()
        self.new: dict[Var, Var] = {}
        self.split: set[Var] = set()  # old variables that hold rows of every sample

    def function(self, main: relax.Function) -> relax.Function:
        params = [relax.Var(p.name, self._part(p.ty)) for p in main.params]
        self.new.update(zip(main.params, params, strict=True))
        self.split.update(main.params)
        bound = []
        for binding in bindings(main):
            value = self._value(binding.var, binding.value)
            var = type(binding.var)(binding.var.name, value.ty)
            self.new[binding.var] = var
            bound.append(relax.VarBinding(var, value))
        result = main.body.body
        wanted = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        if not all(leaf in self.split for leaf in wanted):
            raise _MixedError
        body = relax.SeqExpr([relax.DataflowBlock(bound)], self._replaced(result))
        return relax.Function(params, body, self._part(result.ty), main.is_pure, main.attrs)

    def _value(self, var: Var, value: Expr) -> Expr:
        """Return what a binding is for one sample; its shape must be a sample's share of what it was."""
        if isinstance(value, relax.Var):
            if value in self.split:
                self.split.add(var)
            return self.new[value]
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self.split:
            self.split.add(var)
            return self.builder.normalize(relax.TupleGetItem(self.new[value.tuple_value], value.index))
        if not isinstance(value, relax.Call):
            raise _MixedError
        spreads = op_name(value) == "broadcast_to" and self._spreads(value)
        if not spreads and not any(leaf in self.split for leaf in _leaves(value)):
            return self.builder.normalize(self._call(value, [self._replaced(a) for a in value.args]))
        wanted = self._part(var.ty)
        self.split.add(var)
        for args in self._choices(value):
            try:
                found = self.builder.normalize(self._call(value, args))
            except (TypeError, ValueError, RuntimeError):
                continue  # shapes that do not go together
            if _shapes(found.ty) == _shapes(wanted):
                return found
        raise _MixedError

    def _choices(self, call: Expr) -> Sequence[list[Expr]]:
        """Return arguments to try: constants as they are, then a sample's share of them."""
        whole = [self._replaced(a) for a in call.args]
        if op_name(call) == "take" and call.args[0] in self.split and int(call.attrs.axis or 0) == 0:
            return [[whole[0], self._rows(call)]]
        return [whole, [self._shared(a) for a in call.args]]

    def _replaced(self, expr: Expr) -> Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._replaced(f) for f in expr.fields])
        if isinstance(expr, relax.ShapeExpr):
            first, *rest = [int(d) for d in expr.values]
            return relax.ShapeExpr([first // self.samples, *rest]) if first % self.samples == 0 else expr
        return self.new.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def _shared(self, expr: Expr) -> Expr:
        """Return an argument, of a constant a sample's share where it says the same of every sample."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._shared(f) for f in expr.fields])
        if not isinstance(expr, tvm.ir.GenericConst):
            return self._replaced(expr)
        shape = _shape(expr.ty)
        if not shape or shape[0] % self.samples:
            return expr
        parts = expr.value.numpy().reshape(self.samples, shape[0] // self.samples, *shape[1:])
        return relax.const(parts[0].copy()) if _all_alike(parts) else expr

    def _rows(self, call: Expr) -> Expr:
        """Return the indices that take one sample's rows, where those of the others follow from them."""
        rows, indices = shape_of(call.args[0]), call.args[1]
        if rows is None or not isinstance(indices, tvm.ir.GenericConst):
            raise _MixedError
        values = indices.value.numpy()
        if values.ndim == 0 or len(values) % self.samples or rows[0] % self.samples:
            raise _MixedError
        parts = values.reshape(self.samples, -1, *values.shape[1:])
        firsts = np.arange(self.samples).reshape(-1, *[1] * values.ndim) * (rows[0] // self.samples)
        if not _all_alike(parts - firsts):
            raise _MixedError
        return relax.const(parts[0].copy())

    def _spreads(self, call: Expr) -> bool:
        """Whether a broadcast gives every sample the same rows."""
        source, to = shape_of(call.args[0]), [int(d) for d in call.args[1].values]
        full = source is not None and len(source) == len(to) and source[0] == 1
        return full and to[0] % self.samples == 0 and call.args[0] not in self.split

    def _part(self, ty: Any) -> Any:
        if isinstance(ty, relax.TupleType):  # of a split
            return relax.TupleType([self._part(field) for field in ty.fields])
        shape = _shape(ty)
        if not shape or shape[0] % self.samples:
            raise _MixedError
        return relax.TensorType((shape[0] // self.samples, *shape[1:]), ty.dtype)

    @staticmethod
    def _call(call: Expr, args: list[Expr]) -> Expr:
        return relax.Call(call.op, args, call.attrs, call.ty_args)


def _leaves(expr: Expr) -> list[Expr]:
    leaves: list[Expr] = []
    for arg in expr.args:
        leaves += arg.fields if isinstance(arg, relax.Tuple) else [arg]
    return leaves


def _all_alike(parts: Any) -> bool:
    return np.array_equal(parts, np.broadcast_to(parts[:1], parts.shape))


def _shapes(ty: Any) -> list[Shape | None]:
    return [_shape(each) for each in (ty.fields if isinstance(ty, relax.TupleType) else [ty])]


def _shape(ty: Any) -> Shape | None:
    shape = getattr(ty, "shape", None)
    if shape is None or not isinstance(shape, relax.ShapeExpr):
        return None
    return tuple(int(d) for d in shape)
