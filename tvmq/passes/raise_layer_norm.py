"""Recognise layer norm in the arithmetic that ONNX writes it with."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.constants import array_of, channel_vector, constant, scalar_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of


@tvm.ir.transform.module_pass(opt_level=0, name="RaiseLayerNorm")
class RaiseLayerNorm:
    """Raise (x - mean) / sqrt(mean((x - mean)**2) + epsilon) * gamma + beta over the last axis.

    Before: lv = mean(x, [-1]); lv1 = subtract(x, lv); lv2 = power(lv1, 2); lv3 = mean(lv2, [-1])
            lv4 = add(lv3, 1e-6); lv5 = sqrt(lv4); lv6 = divide(lv1, lv5)
            lv7 = multiply(lv6, gamma); lv8 = add(lv7, beta)
    After:  lv8 = layer_norm(x, gamma, beta, axes=[-1], epsilon=1e-6)
    The quotient alone is a layer norm with gamma 1 and beta 0; constants after it go into those two.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, raise_quotient, fold_gamma_and_beta)


def raise_quotient(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """layer_norm(x, 1, 0) for a centred x over its standard deviation."""
    parts = _quotient(graph, value)
    if parts is None:
        return None
    centred, variance_and_epsilon = parts
    total = graph.call(variance_and_epsilon, "add")
    centre = graph.call(centred, "subtract")
    if total is None or centre is None:
        return None
    epsilon, x = scalar_of(total.args[1]), centre.args[0]
    if epsilon is None or not _is_mean_of(graph, centre.args[1], x):
        return None
    shape = shape_of(x)
    if shape is None or not _is_variance(graph, total.args[0], centred, x):
        return None
    ones = np.ones(shape[-1], np.float32)
    return _layer_norm(x, ones, np.zeros_like(ones), epsilon)


def fold_gamma_and_beta(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """layer_norm(x, g * c, b * c) for its product with a constant c [C]; its sum likewise."""
    if op_name(value) not in ("multiply", "add"):
        return None
    norm, other = value.args
    if array_of(norm) is not None:
        norm, other = other, norm
    call = graph.call(norm, "nn.layer_norm")
    shape = shape_of(norm)
    if call is None or graph.uses(norm) != 1 or shape is None or not _over_last_axis(call):
        return None
    gamma, beta = array_of(call.args[1]), array_of(call.args[2])
    vector = channel_vector(other, shape[-1], len(shape) - 1, len(shape))
    if vector is None or gamma is None or beta is None:
        return None
    if op_name(value) == "multiply":
        gamma, beta = gamma * vector, beta * vector
    else:
        beta = beta + vector
    return _layer_norm(call.args[0], gamma, beta, float(call.attrs.epsilon))


def _layer_norm(x: Expr, gamma: Any, beta: Any, epsilon: float) -> Expr:
    return relax.op.nn.layer_norm(x, constant(gamma), constant(beta), axes=[-1], epsilon=epsilon)


def _quotient(graph: Rebuild, value: Expr) -> tuple[Expr, Expr] | None:
    """Return (a, v) where value is a / sqrt(v), a * rsqrt(v) or a * (1 / sqrt(v))."""
    name = op_name(value)
    if name == "divide":
        root = graph.call(value.args[1], "sqrt")
        return None if root is None else (value.args[0], root.args[0])
    if name != "multiply":
        return None
    for a, b in (value.args, reversed(value.args)):
        inverse = graph.call(b, "rsqrt")
        if inverse is not None:
            return a, inverse.args[0]
        quotient = graph.call(b, "divide")
        root = None if quotient is None else graph.call(quotient.args[1], "sqrt")
        if root is not None and scalar_of(quotient.args[0]) == 1.0:
            return a, root.args[0]
    return None


def _is_variance(graph: Rebuild, expr: Expr, centred: Expr, x: Expr) -> bool:
    variance = graph.call(expr, "variance")
    if variance is not None:
        return bool(variance.args[0].same_as(x)) and _over_last_axis(variance)
    mean = graph.call(expr, "mean")
    if mean is None or not _over_last_axis(mean):
        return False
    square = graph.call(mean.args[0], "power", "multiply", "square")
    if square is None or not _is_centred(graph, square.args[0], centred, x):
        return False
    if op_name(square) == "power":
        return scalar_of(square.args[1]) == 2.0
    return op_name(square) == "square" or square.args[1].same_as(square.args[0])


def _is_centred(graph: Rebuild, expr: Expr, centred: Expr, x: Expr) -> bool:
    """expr is the centred value, or a second subtraction of the mean (some exporters repeat it)."""
    if expr.same_as(centred):
        return True
    again = graph.call(expr, "subtract")
    return again is not None and again.args[0].same_as(x) and _is_mean_of(graph, again.args[1], x)


def _is_mean_of(graph: Rebuild, expr: Expr, x: Expr) -> bool:
    mean = graph.call(expr, "mean")
    return mean is not None and mean.args[0].same_as(x) and _over_last_axis(mean)


def _over_last_axis(call: Expr) -> bool:
    rank = len(call.args[0].ty.shape)
    norm = op_name(call) == "nn.layer_norm"
    axes = call.attrs.axes if norm else call.attrs.axis
    if axes is None or not (norm or bool(call.attrs.keepdims)):
        return False
    return [int(a) % rank for a in axes] == [rank - 1]
