"""Recognise a mask that a model's inputs choose, however an exporter wrote it.

Before:  (1 - astype(mask)) * -3.4e38;  where(not mask, -inf, 0);  where(and(mask, true), 0, -1e4), ...
After:   mask, as a boolean: true where the additive form is 0
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmq.passes.constants import array_of, scalar_of
from tvmq.passes.rebuild import Expr, Rebuild, dtype_of, op_name, shape_of
from tvmq.passes.score_terms import HIDES

VIEWS = ("reshape", "expand_dims", "squeeze", "broadcast_to")


def seen_keys(graph: Rebuild, mask: Expr) -> Expr | None:
    """Return a boolean that broadcasts like mask: false where it adds HIDES or less, true where it adds 0.

    A mask made of numbers counts as 0 or 1, as its exporter takes it. None where mask is anything else.
    """
    value = graph.value(mask)
    name = op_name(value)
    if name in VIEWS:
        return _viewed(graph, value, seen_keys(graph, value.args[0]))
    if name == "where":
        condition, yes, no = value.args
        if scalar_of(yes) == 0.0 and _hides(no):
            return simplified(graph, condition)
        # transformers: inverted.masked_fill(inverted.to(bool), min), 0 in all other places
        if _hides(yes) and (scalar_of(no) == 0.0 or _ones_minus(graph, no) is not None):
            return simplified(graph, graph.emit(relax.op.logical_not(condition)))
    if name == "multiply":
        for number, other in (value.args, reversed(value.args)):
            shown = _ones_minus(graph, other) if _hides(number) else None
            if shown is not None:
                return _as_bool(graph, shown)
    return None


def simplified(graph: Rebuild, seen: Expr) -> Expr:
    """Return a boolean that broadcasts like seen, without what changes nothing."""
    value = graph.value(seen)
    name = op_name(value)
    if name in ("bitwise_and", "logical_and"):
        for one, other in (value.args, reversed(value.args)):
            array = array_of(other)
            if array is not None and array.all() and _same_rank(one, seen):
                return simplified(graph, one)
    if name == "broadcast_to" and _same_rank(value.args[0], seen):
        return simplified(graph, value.args[0])
    if name == "astype":
        shown = _ones_minus(graph, value.args[0])
        return seen if shown is None else graph.emit(relax.op.logical_not(_as_bool(graph, shown)))
    if name == "logical_not":
        inner = simplified(graph, value.args[0])
        again = graph.call(inner, "logical_not")
        return graph.emit(relax.op.logical_not(inner)) if again is None else again.args[0]
    return seen


def _viewed(graph: Rebuild, view: Expr, seen: Expr | None) -> Expr | None:
    if seen is None or (op_name(view) == "broadcast_to" and _same_rank(view, seen)):
        return seen
    if shape_of(seen) != shape_of(view.args[0]):
        return None  # what was left out of it, this view would have to leave out too
    return graph.emit(relax.Call(view.op, [seen, *view.args[1:]], view.attrs, view.ty_args))


def _ones_minus(graph: Rebuild, expr: Expr) -> Expr | None:
    """Return x where expr is 1 - x."""
    call = graph.call(expr, "subtract")
    if call is None:
        return None
    ones = array_of(call.args[0])
    same = shape_of(call.args[1]) == shape_of(call)
    return call.args[1] if ones is not None and same and bool((ones == 1).all()) else None


def _as_bool(graph: Rebuild, mask: Expr) -> Expr:
    """Emit mask != 0, of what mask was before it became a float."""
    cast = graph.call(mask, "astype")
    source = mask if cast is None else cast.args[0]
    return source if dtype_of(source) == "bool" else graph.emit(relax.op.astype(source, "bool"))


def _hides(expr: Expr) -> bool:
    array = array_of(expr)
    return array is not None and array.dtype.kind == "f" and bool((array <= np.float32(HIDES)).all())


def _same_rank(one: Expr, other: Expr) -> bool:
    return len(shape_of(one) or ()) == len(shape_of(other) or ())
