"""Rows of scores that an input's mask may hide entirely.

torch gives such a row zero probabilities by a guard behind the softmax. An attention operator has no place
for the guard inside, so it moves behind the attention: zero probabilities are a zero row of the output.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmq.passes.constants import constant, scalar_of
from tvmq.passes.drop_softmax_guard import guarded_softmax
from tvmq.passes.rebuild import Expr, Rebuild, op_name, shape_of
from tvmq.passes.seen_keys import simplified

# A score plus this is this: what a row has besides it vanishes in the softmax, as with -inf.
LOWEST = np.array(np.finfo(np.float32).min)


def without_guard(graph: Rebuild, expr: Expr) -> tuple[Expr, bool]:
    """Return the softmax behind a guard and True, any other expression and False."""
    softmax = guarded_softmax(graph, graph.value(expr))
    return (expr, False) if softmax is None else (softmax, True)


def hiding_choice(graph: Rebuild, mask: Expr) -> Expr | None:
    """Return seen [B or 1, 1, T or 1, S] where mask is where(seen, 0, -inf), else None."""
    choice = graph.call(mask, "where")
    shape = shape_of(mask)
    if choice is None or shape is None or len(shape) != 4 or shape[1] != 1:
        return None
    if shape_of(choice.args[0]) != shape or scalar_of(choice.args[1]) != 0.0:
        return None
    return simplified(graph, choice.args[0]) if scalar_of(choice.args[2]) == -np.inf else None


def finite_mask(graph: Rebuild, seen: Expr) -> Expr:
    """Emit the mask with the lowest number for -inf, so that hidden rows stay numbers."""
    zero, lowest = constant(np.zeros((), np.float32)), constant(LOWEST)
    return graph.emit(relax.op.where(seen, zero, lowest))


def zero_hidden_rows(graph: Rebuild, attention: Expr, seen: Expr) -> Expr:
    """Emit attention [B, T, H, D] with zeros in the rows of which seen [B or 1, 1, T or 1, S] has nothing."""
    batch, _, rows, _ = shape_of(seen) or ()
    any_seen = graph.emit(relax.op.max(graph.emit(relax.op.astype(seen, "int8")), axis=-1, keepdims=True))
    shown = graph.emit(relax.op.astype(any_seen, "bool"))
    by_row = graph.emit(relax.op.reshape(shown, (batch, rows, 1, 1)))
    return graph.emit(relax.op.where(by_row, attention, constant(np.zeros((), np.float32))))


def rows_shown(value_of: Callable[[Expr], Expr], condition: Expr) -> Expr | None:
    """Return seen where a condition is that of zero_hidden_rows: the rows of which seen has something."""
    call = value_of(condition)
    for name in ("reshape", "astype", "max", "astype"):
        if op_name(call) == name:
            condition, call = call.args[0], value_of(call.args[0])
        elif name != "reshape":  # which is gone where it changed nothing
            return None
    return condition
