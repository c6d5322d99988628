"""Recognise GELU, SiLU, ReLU and ReLU6 in the arithmetic that exporters write them with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.constants import scalar_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild

TOLERANCE = 1e-4  # relative; exporters round sqrt(2) and 0.044715 to what float32 or a paper prints


@tvm.ir.transform.module_pass(opt_level=0, name="RaiseActivations")
class RaiseActivations:
    """Raise gelu, gelu_tanh and silu from products, whatever the order of their factors.

    Before: lv = divide(x, 1.41421); lv1 = erf(lv); lv2 = add(lv1, 1); lv3 = multiply(x, lv2)
            lv4 = multiply(lv3, 0.5)
    After:  lv4 = gelu(x)

    Before: lv = sigmoid(x); lv1 = multiply(x, lv)
    After:  lv1 = silu(x)

    Before: lv = clip(x, 0, inf)
    After:  lv = relu(x)
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, raise_activation)


def raise_activation(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the activation that a product or a clip stands for."""
    if op_name(value) == "clip":
        return _clip(value)
    if op_name(value) not in ("multiply", "divide"):
        return None
    number, factors = product(graph, value)
    if len(factors) != 2:
        return None
    for x, gate in (factors, reversed(factors)):
        sigmoid = graph.call(gate, "sigmoid")
        if sigmoid is not None and sigmoid.args[0].same_as(x) and number == 1.0:
            return relax.op.nn.silu(x)
        raised = _gelu(graph, x, gate) if _close(number, 0.5) else None
        if raised is not None:
            return raised(x)
    return None


def _clip(value: Expr) -> Expr | None:
    x, low, high = value.args
    return relax.op.nn.relu(x) if low.value == 0 and math.isinf(high.value) else None


def product(graph: Rebuild, expr: Expr, depth: int = 4) -> tuple[float, list[Expr]]:
    """Return (constant, factors) of nested products with, and quotients by, scalars; factors may repeat.

    A variable that is read more than once is a factor: the x of x * gate(x) may be a product itself.
    """
    whole = isinstance(expr, relax.Var) and graph.uses(expr) != 1
    call = graph.call(expr, "multiply", "divide", "power") if depth and not whole else None
    if call is None:
        number = scalar_of(expr)
        return (1.0, [expr]) if number is None else (number, [])
    left, right = call.args
    second = scalar_of(right)
    if op_name(call) == "power":
        return product(graph, left, depth - 1) if second == 1.0 else _power(graph, expr, left, second, depth)
    first, factors = product(graph, left, depth - 1)
    if op_name(call) == "divide":
        return (1.0, [expr]) if second is None else (first / second, factors)
    other, more = product(graph, right, depth - 1)
    return first * other, factors + more


def _power(
    graph: Rebuild, expr: Expr, base: Expr, exponent: float | None, depth: int
) -> tuple[float, list[Expr]]:
    if exponent not in (2.0, 3.0):
        return 1.0, [expr]
    number, factors = product(graph, base, depth - 1)
    return number**exponent, factors * int(exponent)


def _gelu(graph: Rebuild, x: Expr, gate: Expr) -> Callable[[Expr], Expr] | None:
    """Return the GELU whose gate is 1 + erf(x / sqrt(2)) or 1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))."""
    total = graph.call(gate, "add")
    if total is None:
        return None
    for one, other in (total.args, reversed(total.args)):
        inner = graph.call(other, "erf", "tanh")
        if scalar_of(one) != 1.0 or inner is None:
            continue
        if op_name(inner) == "erf":
            return relax.op.nn.gelu if _is_multiple(graph, inner.args[0], x, math.sqrt(0.5)) else None
        return relax.op.nn.gelu_tanh if _is_tanh_argument(graph, inner.args[0], x) else None
    return None


def _is_tanh_argument(graph: Rebuild, expr: Expr, x: Expr) -> bool:
    number, factors = product(graph, expr)
    total = graph.call(factors[0], "add") if len(factors) == 1 else None
    if total is None or not _close(number, math.sqrt(2 / math.pi)):
        return False
    for first, second in (total.args, reversed(total.args)):
        cubic, cube = product(graph, second)
        if first.same_as(x) and _close(cubic, 0.044715) and len(cube) == 3:
            return all(f.same_as(x) for f in cube)
    return False


def _is_multiple(graph: Rebuild, expr: Expr, x: Expr, wanted: float) -> bool:
    number, factors = product(graph, expr)
    return len(factors) == 1 and factors[0].same_as(x) and _close(number, wanted)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE)
