"""Follow rows of channels to what is computed of some or all of them, each channel by itself.

The class token that a classifier reads, the mean of all tokens, or of those that a mask shows: a factor of a
channel passes through all of these.
"""

from __future__ import annotations

from collections.abc import Callable

from tvmq.passes.linear_graph import LinearGraph
from tvmq.passes.rebuild import Expr, Var, shape_of


def pooled_rows(graph: LinearGraph, var: Var) -> tuple[Var, bool]:
    """Return what var [..., C] alone becomes, [..., C] too, and whether a number added to a channel does."""
    shiftable = True
    while (reader := graph.only_reader(var)) is not None:
        keeps = KEEPS_CHANNELS.get(graph.op(reader))
        if keeps is None or not keeps(graph.values[reader], var):
            break
        shiftable = shiftable and graph.op(reader) in SHIFTABLE
        var = reader
    return var, shiftable


def _other_axes(call: Expr, var: Var) -> bool:
    """Tell whether what an operator takes of var, or computes over, is not of the last axis."""
    shape, axes = shape_of(var), call.attrs.axis
    if shape is None or axes is None or not call.args[0].same_as(var):
        return False
    axes = [axes] if isinstance(axes, int) else axes
    return all(int(axis) % len(shape) != len(shape) - 1 for axis in axes) and _same_width(call, var)


def _slice(call: Expr, var: Var) -> bool:
    shape = shape_of(var)
    axes = [int(axis.value) for axis in call.args[1].fields]
    return shape is not None and all(axis % len(shape) != len(shape) - 1 for axis in axes)


def _by_rows(call: Expr, var: Var) -> bool:
    """Tell whether var is multiplied or divided by one number for each row, or by one alone."""
    if not call.args[0].same_as(var) and call.op.name != "relax.multiply":
        return False
    others = [arg for arg in call.args if not arg.same_as(var)]
    return all((shape_of(other) or (1,))[-1] == 1 for other in others) and _same_width(call, var)


def _reshaped(call: Expr, var: Var) -> bool:
    return _same_width(call, var)


def _same_width(call: Expr, var: Var) -> bool:
    before, after = shape_of(var), shape_of(call)
    return before is not None and after is not None and before[-1:] == after[-1:] != ()


KEEPS_CHANNELS: dict[str, Callable[[Expr, Var], bool]] = {
    "strided_slice": _slice,
    "take": _other_axes,
    "mean": _other_axes,
    "sum": _other_axes,
    "multiply": _by_rows,
    "divide": _by_rows,
    "reshape": _reshaped,
}
SHIFTABLE = ("strided_slice", "take", "mean", "reshape")
