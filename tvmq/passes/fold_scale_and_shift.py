"""Fold constant arithmetic after a linear map into its weights and bias."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmq.passes.affine import affine_of
from tvmq.passes.constants import Array, array_of, constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of


@tvm.ir.transform.module_pass(opt_level=0, name="FoldScaleAndShift")
class FoldScaleAndShift:
    """Fold per-channel or scalar constants (LayerScale, score scales, second biases) into linear and conv.

    Before: lv = matmul(x, W); lv1 = add(lv, b); lv2 = multiply(lv1, g[N]); lv3 = subtract(lv2, c[N])
    After:  lv = matmul(x, W * g); lv3 = add(lv, b * g - c)
    A map whose value is also read elsewhere is left alone. A lone bias gets its canonical shape.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, fold_scale_and_shift)


def fold_scale_and_shift(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the linear map with the constant of add, subtract, multiply or divide folded in."""
    name = op_name(value)
    if name not in ("add", "subtract", "multiply", "divide") or array_of(value.args[1]) is None:
        return None
    affine = affine_of(graph, value.args[0])
    if affine is None or shape_of(value) != shape_of(affine.call):
        return None
    vector = affine.vector(value.args[1])
    if vector is None:
        return None
    if name == "add" and affine.bias is None:
        return _canonical_bias(graph, value, affine.add_bias(affine.var, vector))
    scale, shift = _as_scale_and_shift(name, vector)
    return affine.scale_and_shift(graph, scale, shift)


def _as_scale_and_shift(name: str, vector: Array) -> tuple[Array | None, Array | None]:
    if name == "add":
        return None, vector
    if name == "subtract":
        return None, -vector
    return (vector if name == "multiply" else 1 / vector), None


def _canonical_bias(graph: Rebuild, value: Expr, canonical: Expr) -> Expr | None:
    """canonical, unless the bias has that shape already."""
    return None if shape_of(value.args[1]) == shape_of(canonical.args[1]) else canonical


def scale_and_shift(x: Expr, scale: Array, shift: Array, axis: int, graph: Rebuild) -> Expr:
    """Return x * scale + shift along an axis of x, for an x that is no linear map."""
    shape = [1] * len(x.ty.shape)
    shape[axis] = -1
    scaled = graph.emit(relax.op.multiply(x, constant(scale.reshape(shape))))
    return relax.op.add(scaled, constant(shift.reshape(shape)))
