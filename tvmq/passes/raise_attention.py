"""Recognise attention, however its heads are arranged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.constants import Array, array_of, constant, scalar_of
from tvmq.passes.hidden_rows import finite_mask, hiding_choice, without_guard, zero_hidden_rows
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild, shape_of
from tvmq.passes.seen_keys import seen_keys
from tvmq.passes.views import Layout, replay, trace

Shape = tuple[int, ...]


@tvm.ir.transform.module_pass(opt_level=0, name="RaiseAttention")
class RaiseAttention:
    """Raise softmax(q k^T * scale + bias) v to nn.attention on [B, T, H, D] reshapes of its operands.

    Before: lv = permute_dims(reshape(q[B, T, H*D], [B, T, H, D]), [0, 2, 1, 3]); the same for k and v
            lv3 = multiply(lv, s); lv4 = permute_dims(lv1, [0, 1, 3, 2]); lv5 = matmul(lv3, lv4)
            lv6 = softmax(lv5); lv7 = matmul(lv6, lv2); lv8 = permute_dims(lv7, [0, 2, 1, 3])
    After:  lv7 = attention(reshape(q), reshape(k), reshape(v), scale=s); lv8 = lv7
    scale gathers the scalars on q, k and the scores; masks and position biases become the bias
    [B or 1, H or 1, T or 1, S], in the form of score_terms where they are known; torch's guard for rows
    that a mask hides moves behind the attention.
    What does not fit (grouped heads, other layouts) is left as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        return rebuild(mod, raise_attention)


@dataclass(frozen=True, slots=True)
class Heads:
    """The operand of a batched product: a view of source, [B, T, H, D] when reshaped, times scale."""

    source: Expr
    layout: Layout
    scale: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What enters a softmax: product * scale + biases, each bias with the scores' shape where it is added."""

    product: Any  # the matmul call
    scale: float
    biases: tuple[tuple[Expr, Shape], ...]
    seen: Expr | None = None  # where a mask may hide whole rows, which then are zero: what it shows


def raise_attention(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    """Return the attention that a product of a softmax and values ends, in the product's arrangement."""
    shape = shape_of(value) if op_name(value) == "matmul" else None
    if shape is None or len(shape) < 3:
        return None
    scores = _scores_behind_softmax(graph, value.args[0])
    if scores is None:
        return None
    q, k, v = (heads_of(graph, a) for a in (*scores.product.args, value.args[1]))
    if q is None or k is None or v is None or v.scale != 1.0:
        return None
    rank = len(k.layout.shape)
    k = Heads(k.source, k.layout.permute([*range(rank - 2), rank - 1, rank - 2]), k.scale)
    shapes = [batch_first_shape(h.layout) for h in (q, k, v)]
    if any(s is None for s in shapes) or len({(s[0], s[2]) for s in shapes if s}) != 1:
        return None
    operands = [graph.emit(relax.op.reshape(h.source, s)) for h, s in zip((q, k, v), shapes, strict=True)]
    (batch, rows, heads, _), columns = shapes[0] or (), (shapes[1] or ())[1]
    bias = _merged_bias(graph, scores.biases, (batch, heads, rows, columns))
    if bias is None and scores.biases:
        return None
    scale = tvm.tirx.FloatImm("float32", np.float32(scores.scale * q.scale * k.scale))
    attention = graph.emit(relax.op.nn.attention(*operands, bias, scale), var.name)
    if scores.seen is not None:
        attention = zero_hidden_rows(graph, attention, scores.seen)
    return relax.op.reshape(graph.emit(relax.op.permute_dims(attention, [0, 2, 1, 3])), shape)


def heads_of(graph: Rebuild, expr: Expr) -> Heads | None:
    """Trace an operand back through views and scalar factors to what it is a view of."""
    views: list[Any] = []
    scale = 1.0
    while True:
        expr, before = trace(graph, expr)
        views = before + views
        factor = scalar_factor(graph, expr)
        if factor is None:
            break
        expr, scale = factor[0], scale * factor[1]
    shape = shape_of(expr)
    layout = None if shape is None else replay(Layout.of(shape), views)
    return None if layout is None else Heads(expr, layout, scale)


def scalar_factor(graph: Rebuild, expr: Expr) -> tuple[Expr, float] | None:
    """Return (x, c) where expr is x * c or x / (1 / c) for a scalar c, and has the shape of x."""
    call = graph.call(expr, "multiply", "divide")
    if call is None:
        return None
    number = scalar_of(call.args[1])
    if number is not None and shape_of(call) == shape_of(call.args[0]):
        return call.args[0], number if op_name(call) == "multiply" else 1 / number
    number = scalar_of(call.args[0])
    if number is not None and op_name(call) == "multiply" and shape_of(call) == shape_of(call.args[1]):
        return call.args[1], number
    return None


def batch_first_shape(layout: Layout) -> Shape | None:
    """Return (B, T, H, D) where layout [..., T, D] is the by-head arrangement of that shape, else None."""
    rows, depth = layout.shape[-2:]
    groups = math.prod(layout.shape[:-2])
    row_atoms = layout.axes[-2]
    if len(row_atoms) > 1 or not depth:
        return None
    # The stride of a row is H * D; a single row has none, and all groups may count as heads.
    heads = row_atoms[0][1] // depth if row_atoms else groups
    if heads == 0 or groups % heads:
        return None
    shape = (groups // heads, rows, heads, depth)
    expected = Layout.of(shape).permute([0, 2, 1, 3]).reshape(layout.shape)
    return shape if layout == expected else None


def _scores_behind_softmax(graph: Rebuild, probabilities: Expr) -> Scores | None:
    source, views = trace(graph, probabilities)
    source, guarded = without_guard(graph, source)
    softmax = graph.call(source, "nn.softmax")
    if softmax is None or not _only_regroup(softmax, views):
        return None
    if int(softmax.attrs.axis) % len(softmax.ty.shape) != len(softmax.ty.shape) - 1:
        return None
    scores = scores_of(graph, softmax.args[0])
    return _with_finite_mask(graph, scores) if guarded and scores is not None else scores


def _with_finite_mask(graph: Rebuild, scores: Scores) -> Scores | None:
    """The scores of a softmax that stood behind a guard; None unless one known mask is what it is for."""
    if len(scores.biases) != 1:
        return None
    ((mask, where),) = scores.biases
    seen = hiding_choice(graph, mask)
    if seen is None:
        return None
    return replace(scores, biases=((finite_mask(graph, seen), where),), seen=seen)


def scores_of(graph: Rebuild, expr: Expr) -> Scores | None:
    """Trace scores back through regrouping, scalar factors and added biases to the product of q and k."""
    source, views = trace(graph, expr)
    if views:
        return scores_of(graph, source) if _only_regroup(source, views) else None
    factor = scalar_factor(graph, expr)
    if factor is not None:
        inner = scores_of(graph, factor[0])
        # A factor on a sum with biases would have to scale the biases too.
        if inner is None or inner.biases:
            return None
        return Scores(inner.product, inner.scale * factor[1], ())
    call = graph.call(expr, "matmul", "add")
    shape = None if call is None else shape_of(call)
    if call is None or shape is None:
        return None
    if op_name(call) == "matmul":
        return Scores(call, 1.0, ())
    for one, bias in (call.args, reversed(call.args)):
        inner = scores_of(graph, one) if shape_of(one) == shape else None
        if inner is not None:
            return Scores(inner.product, inner.scale, (*inner.biases, (bias, shape)))
    return None


def _only_regroup(source: Expr, views: list[Any]) -> bool:
    """The views keep the order of elements and the last two axes."""
    start = shape_of(source)
    if start is None:
        return False
    end = shape_of(views[-1]) if views else start
    layout = replay(Layout.of(start), views)
    return end is not None and start[-2:] == end[-2:] and layout == Layout.of(end)


def _merged_bias(graph: Rebuild, biases: tuple[tuple[Expr, Shape], ...], shape: Shape) -> Expr | None:
    """Return the sum of biases, broadcastable to shape [B, H, T, S]; None if one of them does not fit."""
    fixed: Array | None = None
    seen: Expr | None = None
    total: Expr | None = None
    for bias, where in biases:
        array = array_of(bias)
        if array is not None:
            term = np.broadcast_to(array, where).reshape(shape)
            fixed = term if fixed is None else fixed + term
            continue
        own = shape_of(bias)
        if where != shape or own is None or own[-1] != shape[-1]:
            return None
        keys = seen_keys(graph, bias)
        if keys is not None:
            keys = _rank_4(graph, keys)
            seen = keys if seen is None else graph.emit(relax.op.bitwise_and(seen, keys))
            continue
        bias = _rank_4(graph, bias)
        total = bias if total is None else graph.emit(relax.op.add(total, bias))
    terms = [] if total is None else [total]
    terms += [] if seen is None else [finite_mask(graph, seen)]
    terms += [] if fixed is None else [constant(_without_repeats(fixed))]
    return reduce(lambda a, b: graph.emit(relax.op.add(a, b)), terms) if terms else None


def _rank_4(graph: Rebuild, bias: Expr) -> Expr:
    own = shape_of(bias) or ()
    padded = (1,) * (4 - len(own)) + own
    return bias if padded == own else graph.emit(relax.op.reshape(bias, padded))


def _without_repeats(bias: Array) -> Array:
    """Drop batch and head axes along which nothing changes: [B or 1, H or 1, T, S]."""
    for axis in (0, 1):
        first = bias.take([0], axis)
        if (bias == first).all():
            bias = first
    return bias
