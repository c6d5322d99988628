"""Lower layer norm, unary functions, embeddings and the addition of two stored values.

Each operation has two functions: one says whether its operands let it be an integer operation, the other
emits it once a quantize has given the storage of its result (None: not as integers after all).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.formats import QuantParams
from tvmq.passes import composites
from tvmq.passes.constants import array_of
from tvmq.passes.epilogue import Copy
from tvmq.passes.integer_parameters import norm_parameters
from tvmq.passes.layouts import channels_last
from tvmq.passes.lower_products import emit_linear
from tvmq.passes.lowering_values import Array, Emitter, Expr, Pending, QdqCall, Stored, constant
from tvmq.passes.rebuild import shape_of
from tvmq.unary import UNARY_FUNCTIONS, unary_name


def layer_norm(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending norm of int16 values over their last axis."""
    x, *affine = source.operands
    axes = [int(a) % len(source.shape) for a in source.call.attrs.axes]
    known = all(isinstance(a, tvm.ir.GenericConst) for a in affine)
    if isinstance(x, Stored) and x.params.dtype == "int16" and known and axes == [len(source.shape) - 1]:
        return Pending("layer_norm", source)
    return None


def quantize_layer_norm(emit: Emitter, pending: Pending, out: QuantParams) -> Stored:
    """Emit the norm."""
    source = pending.source
    x, gamma, beta = source.operands
    x = emit.with_layout(x, channels_last(x.layout.shape))
    numbers = norm_parameters(
        source.name,
        gamma.value.numpy().astype(np.float64),
        beta.value.numpy().astype(np.float64),
        float(source.call.attrs.epsilon),
        x.params,
        out,
    )
    rows, channels = x.layout.matrix
    pieces = 0 if x.order is None else len(x.order) // rows
    args = [emit.stored_rows(x), constant(numbers.gain), constant(numbers.offset)]
    args += [] if x.order is None else [constant(x.order)]

    def norm(copy: Copy | None = None) -> Expr:
        func = composites.layer_norm(
            source.name,
            rows=rows,
            channels=channels,
            out_dtype=out.dtype,
            low=out.low,
            high=out.high,
            gain_shift=numbers.gain_shift,
            epsilon=numbers.epsilon,
            limit=numbers.limit,
            pieces=pieces,
            copy=copy,
        )
        return emit.composite(func, args, source.name)

    return Stored(out, x.layout, force=norm, paired=norm if out.dtype == "int16" else None)


def with_copy(emit: Emitter, name: str, source: Stored, out: QuantParams, shift: int) -> Stored | None:
    """Return the uint8 storage of an int16 value that its kernel makes besides; None if it cannot.

    shift: from the int16 storage to the other.
    """
    paired = source.paired
    if paired is None or source.rows_var is not None or out.dtype != "uint8":
        return None
    pair = paired(Copy(shift, out.zero_point, out.low, out.high))
    source.rows_var = emit(relax.TupleGetItem(pair, 0))
    return Stored(out, source.layout, rows_var=emit(relax.TupleGetItem(pair, 1), name))


def unary(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending function of uint8 values."""
    x = source.operands[0]
    if isinstance(x, Stored) and x.params.dtype == "uint8":
        return Pending("unary", source)
    return None


def quantize_unary(emit: Emitter, pending: Pending, out: QuantParams) -> Stored | None:
    """Emit a table; it joins the product that makes its input if nothing else reads that."""
    if out.dtype != "uint8":
        return None
    source = pending.source
    x = source.operands[0]
    table = numerics.unary_table(
        source.chain or UNARY_FUNCTIONS[unary_name(source.call.op.name, source.call.args)],
        float(np.float32(x.params.scale)),
        x.params.zero_point,
        float(np.float32(out.scale)),
        out.zero_point,
        (out.low, out.high),
    )
    product = x.pending if x.rows_var is None and source.readers == 1 else None

    def through(other: Array | None = None) -> Expr:
        values = table if other is None else other[table]
        if product is not None:
            return emit_linear(emit, product, x.params, values)
        func = composites.table(source.name, shape=x.layout.matrix)
        return emit.composite(func, [emit.rows(x), constant(values)], source.name)

    return Stored(out, x.layout, force=through, through=through)


def nearest_codes(emit: Emitter, source: QdqCall) -> Stored | None:
    """Return uint8 values as what a constant of 256 codes has for each.

    A table that makes them writes these codes instead; else one follows.
    """
    table, x = array_of(source.operands[0]), source.operands[1]
    if not isinstance(x, Stored) or x.params.dtype != "uint8":
        return None
    if table is None or (table.shape, str(table.dtype)) != ((256,), "uint8"):
        return None
    params = replace(x.params, limits=(int(table.min()), int(table.max())))
    if x.through is not None and x.rows_var is None and source.readers == 1:
        return Stored(params, x.layout, rows_var=x.through(table))
    rows = emit.stored_rows(x)
    func = composites.table(source.name, shape=shape_of(rows) or ())
    taken = emit.composite(func, [rows, constant(table)], source.name)
    return Stored(params, x.layout, rows_var=taken, order=x.order)


def quantize_add(emit: Emitter, pending: Pending, out: QuantParams) -> Stored | None:
    """Emit a saturating addition; None unless both operands are int16 stored as the result is."""
    source = pending.source
    left, right = source.operands
    alike = left.params.aligned(out) and right.params.aligned(out)
    if not (alike and out.dtype == "int16" and out.zero_point == 0):
        return None
    same = left.layout.shape == right.layout.shape
    if same:
        layout = left.layout
        a, b = emit.rows(left), emit.rows(emit.with_layout(right, layout))
    else:  # one of them broadcasts
        layout = channels_last(source.shape)
        a, b = emit.dense(left), emit.dense(right)
    total = emit(op.add(emit(op.astype(a, "int32")), emit(op.astype(b, "int32"))))
    stored = emit(op.astype(emit(op.clip(total, out.low, out.high)), "int16"), source.name)
    return Stored(out, layout, rows_var=stored) if same else Stored(out, layout, dense_var=stored)


def embedding(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending rows of a constant table."""
    table = array_of(source.operands[0])
    float_rows = table is not None and table.ndim == 2 and table.dtype == np.float32
    return Pending("embedding", source) if float_rows and source.call.attrs.axis is not None else None


def quantize_embedding(emit: Emitter, pending: Pending, out: QuantParams) -> Stored:
    """Take the rows from a table that is stored as the result is."""
    source = pending.source
    table, index = source.operands
    rows = table.value.numpy().astype(np.float64)
    steps = np.floor(rows / float(np.float32(out.scale)) + 0.5) + out.zero_point
    stored = constant(np.clip(steps, out.low, out.high).astype(out.dtype))
    attrs = source.call.attrs
    taken = emit(op.take(stored, index, axis=int(attrs.axis), mode=attrs.mode), source.name)
    return Stored(out, channels_last(source.shape), dense_var=taken)
