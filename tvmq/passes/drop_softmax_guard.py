"""Drop the guard for fully masked rows where no row can be fully masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from tvmq.passes.constants import array_of, scalar_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild
from tvmq.passes.views import VIEWS


@tvm.ir.transform.module_pass(opt_level=0, name="DropSoftmaxGuard")
class DropSoftmaxGuard:
    """Drop torch's "0 for a row of -inf" behind a softmax whose rows all hold a finite score.

    Before: p = softmax(s); lv = equal(s, -inf); ...; lv5 = logical_not(max(...)); where(lv5, 0, p)
    After:  p
    The scores are a matrix product (finite for finite inputs) plus masks; each mask must be known:
    a constant, or a choice between finite constants. A mask that is an input may hide a row: it stays.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, drop_softmax_guard)


def drop_softmax_guard(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the softmax that a needless guard stands behind."""
    probabilities = guarded_softmax(graph, value)
    if probabilities is None:
        return None
    scores = graph.value(probabilities).args[0]
    masks = addends(graph, scores)
    if masks is None or sum(not _is_finite(graph, m) for m in masks) > 1:
        return None
    return probabilities if all(_leaves_every_row(graph, m) for m in masks) else None


def guarded_softmax(graph: Rebuild, value: Expr) -> Expr | None:
    """Return the softmax p where value is where(row of p's scores is all -inf, 0, p), else None."""
    if op_name(value) != "where":
        return None
    condition, zeros, probabilities = value.args
    softmax = graph.call(probabilities, "nn.softmax")
    if softmax is None or not _is_zero(graph, zeros):
        return None
    return probabilities if _asks_for_masked_rows(graph, condition, softmax.args[0]) else None


def addends(graph: Rebuild, scores: Expr) -> list[Expr] | None:
    """Return the masks added to a matrix product on its way to scores; None if it is something else."""
    call = graph.call(scores, "add", "multiply", "divide", "matmul", "broadcast_to", *VIEWS)
    if call is None or op_name(call) == "matmul":
        return None if call is None else []
    if op_name(call) in ("multiply", "divide"):
        factor = scalar_of(call.args[1])
        return None if factor is None or not factor > 0 else addends(graph, call.args[0])
    if op_name(call) != "add":
        return addends(graph, call.args[0])
    for one, other in (call.args, reversed(call.args)):
        masks = addends(graph, one)
        if masks is not None:
            return [*masks, other]
    return None


def _asks_for_masked_rows(graph: Rebuild, condition: Expr, scores: Expr) -> bool:
    """Follow not(max(not(scores == -inf))), casts between; it is true for rows of -inf alone."""
    negations, reduced = 0, False
    call = graph.call(condition, "logical_not", "astype", "max", "reshape", "equal")
    while call is not None and op_name(call) != "equal":
        negations += op_name(call) == "logical_not"
        reduced = reduced or op_name(call) == "max"
        call = graph.call(call.args[0], "logical_not", "astype", "max", "reshape", "equal")
    if call is None or not reduced or negations != 2:
        return False
    return bool(call.args[0].same_as(scores)) and scalar_of(call.args[1]) == -np.inf


def _is_zero(graph: Rebuild, expr: Expr) -> bool:
    filled = graph.call(expr, "full_like", "zeros_like", "full", "zeros")
    if filled is None:
        array = array_of(expr)
        return array is not None and not array.any()
    return op_name(filled).startswith("zeros") or scalar_of(filled.args[1]) == 0.0


def _is_finite(graph: Rebuild, mask: Expr) -> bool:
    array = array_of(mask)
    if array is not None:
        return bool(np.isfinite(array).all())
    choice = graph.call(mask, "where")
    if choice is not None:
        return all(_is_finite(graph, a) for a in choice.args[1:])
    view = graph.call(mask, "broadcast_to", *VIEWS)
    return view is not None and _is_finite(graph, view.args[0])


def _leaves_every_row(graph: Rebuild, mask: Expr) -> bool:
    array = array_of(mask)
    if array is not None and array.ndim:
        return bool(np.isfinite(array).any(-1).all())
    return _is_finite(graph, mask)
