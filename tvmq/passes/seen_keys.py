"""Recognise a mask that a model's inputs choose, however an exporter wrote it.

Before:  (1 - astype(mask)) * -3.4e38;  where(not mask, -inf, 0);  where(and(mask, true), 0, -1e4), ...
After:   mask, as a boolean: true where the additive form is 0

A choice says itself which keys it hides. A product does so only for masks made of booleans, or of integers,
which are taken to be 1 (seen) or less: a mask of 2 would be added as +3.4e38. Floats between 0 and 1 are not
taken to be anything.
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

    None where mask is anything else, or may be.
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
        if _hides(yes) and (scalar_of(no) == 0.0 or _is_not_zero(graph, condition, no)):
            return simplified(graph, graph.emit(relax.op.logical_not(condition)))
    if name == "multiply":
        for number, other in (value.args, reversed(value.args)):
            shown = _none_left(graph, other) if _hides(number) else None
            if shown is not None:
                return shown
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
        shown = _none_left(graph, value.args[0])
        return seen if shown is None else graph.emit(relax.op.logical_not(shown))
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


def _none_left(graph: Rebuild, expr: Expr) -> Expr | None:
    """Return, as a boolean, where expr is 0 if it is 1 - x and x was a boolean or an integer, else None."""
    call = graph.call(expr, "subtract")
    if call is None or shape_of(call.args[1]) != shape_of(call):
        return None
    ones = array_of(call.args[0])
    return _is_one(graph, call.args[1]) if ones is not None and bool((ones == 1).all()) else None


def _is_one(graph: Rebuild, mask: Expr) -> Expr | None:
    """Return mask == 1, asked of what it was before it became a float; None where it always was one."""
    value, dtype = graph.value(mask), dtype_of(mask)
    if dtype == "bool":
        return mask
    if op_name(value) in VIEWS:
        return _viewed(graph, value, _is_one(graph, value.args[0]))
    before = value.args[0] if op_name(value) == "astype" else None
    if before is not None and (dtype.startswith("float") or dtype_of(before) == "bool"):
        return _is_one(graph, before)
    if "int" not in dtype:
        return None
    return graph.emit(relax.op.equal(mask, relax.const(1, dtype)))


def _is_not_zero(graph: Rebuild, condition: Expr, x: Expr) -> bool:
    call = graph.call(condition, "astype")
    return call is not None and bool(call.args[0].same_as(x))


def _hides(expr: Expr) -> bool:
    array = array_of(expr)
    return array is not None and array.dtype.kind == "f" and bool((array <= np.float32(HIDES)).all())


def _same_rank(one: Expr, other: Expr) -> bool:
    return len(shape_of(one) or ()) == len(shape_of(other) or ())
