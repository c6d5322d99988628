"""Lower the ops that move values without changing them: they act on the stored integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.passes.layouts import RowsLayout, channels_last
from tvmq.passes.lower_float import float_value
from tvmq.passes.lowering_values import Emitter, QdqCall, Rows, Stored
from tvmq.passes.rebuild import op_name


def view(emit: Emitter, source: QdqCall) -> Stored | None:
    """Return the same storage under a new layout where that is enough, else the op on the integers."""
    x, *others = source.operands
    if not isinstance(x, Stored):
        return None
    layout = _seen_as(x.layout, source) or _joined(x, source)
    if layout is not None:
        return Stored(x.params, layout, rows_var=emit.stored_rows(x), order=x.order)
    index = _permutation_of_rows(x, source)
    if index is not None:
        order = index if x.order is None else _composed(x.order, index)
        moved = Stored(x.params, channels_last(source.shape), rows_var=emit.stored_rows(x), order=order)
        if np.array_equal(order, np.arange(order.size)):
            moved.order = None
            if order.size != index.size:  # joined rows, each of which lies in one piece
                moved.rows_var = emit(op.reshape(moved.rows_var, moved.layout.matrix))
        return moved
    args = [emit.dense(x), *(float_value(emit, other) for other in others)]
    moved = emit(relax.Call(source.call.op, args, source.call.attrs))
    return Stored(x.params, channels_last(source.shape), dense_var=moved)


def _joined(x: Stored, source: QdqCall) -> RowsLayout | None:
    """Return the layout in which rows that an order takes side by side are one row, None for other ops."""
    joined = channels_last(source.shape)
    whole = joined.matrix[1] % x.layout.matrix[1] == 0
    is_reshape = op_name(source.call) == "reshape" and x.layout.is_channels_last
    return joined if x.order is not None and is_reshape and whole else None


def _permutation_of_rows(x: Stored, source: QdqCall) -> Rows | None:
    """Return the rows, each once, that a take from stored rows asks for; None for any other op."""
    call = source.call
    if op_name(call) != "take" or call.attrs.axis is None or int(call.attrs.axis) != 0:
        return None
    if x.layout != channels_last(x.layout.matrix) or not isinstance(source.operands[1], tvm.ir.GenericConst):
        return None
    index: Rows = source.operands[1].value.numpy().ravel().astype(np.int32)
    return index if np.array_equal(np.sort(index), np.arange(x.layout.matrix[0])) else None


def _composed(order: Rows, index: Rows) -> Rows:
    """Return the order of rows order[index]; index counts rows that are one or more rows of order each."""
    return order.reshape(len(index), -1)[index].ravel()


def pad(emit: Emitter, source: QdqCall) -> Stored | None:
    """Return the storage with the zero point around it, where zeros are padded."""
    x, attrs = source.operands[0], source.call.attrs
    if not isinstance(x, Stored) or str(attrs.pad_mode) != "constant" or attrs.pad_value:
        return None
    widths = [int(width) for width in attrs.pad_width]
    padded = emit(op.nn.pad(emit.dense(x), widths, "constant", x.params.zero_point))
    zero = x.params.zero_point
    params = replace(x.params, limits=(min(x.params.low, zero), max(x.params.high, zero)))
    return Stored(params, channels_last(source.shape), dense_var=padded)


def concat(emit: Emitter, source: QdqCall) -> Stored | None:
    """Return the joined storage of parts that are stored alike."""
    parts: Any = source.operands[0]
    if not isinstance(parts, tuple) or not all(isinstance(part, Stored) for part in parts):
        return None
    params = parts[0].params
    if not all(part.params.aligned(params) for part in parts):
        return None
    low, high = min(part.params.low for part in parts), max(part.params.high for part in parts)
    joined = emit(op.concat([emit.dense(part) for part in parts], axis=int(source.call.attrs.axis)))
    return Stored(replace(params, limits=(low, high)), channels_last(source.shape), dense_var=joined)


def _seen_as(layout: RowsLayout, source: QdqCall) -> RowsLayout | None:
    name, attrs = source.call.op.name.removeprefix("relax."), source.call.attrs
    if name in ("reshape", "expand_dims", "squeeze"):
        return layout.reshaped(source.shape)
    if name == "permute_dims" and attrs.axes is not None:
        return layout.permuted([int(a) % len(source.shape) for a in attrs.axes])
    return None
