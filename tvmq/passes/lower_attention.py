"""Lower attention, with what is added to its scores."""

from __future__ import annotations

import numpy as np
from tvm.relax import op

from tvmq import numerics
from tvmq.formats import QuantParams
from tvmq.passes.attention_composite import AttentionSpec
from tvmq.passes.attention_composite import attention as attention_composite
from tvmq.passes.constants import scalar_of
from tvmq.passes.hidden_rows import rows_shown
from tvmq.passes.integer_parameters import attention_parameters
from tvmq.passes.layouts import channels_last
from tvmq.passes.lowering_values import Emitter, Expr, Pending, QdqCall, Rows, Stored, constant
from tvmq.passes.rebuild import shape_of
from tvmq.passes.score_terms import logit_biases, score_terms


def attention(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending attention of symmetric int8 values, with a bias whose parts are known."""
    keys = int(source.call.args[1].ty.shape[1])
    if source.call.attrs.causal_mask is not None or keys > numerics.ATTENTION_MAX_KEYS:
        return None
    for x in source.operands[:3]:
        if not isinstance(x, Stored) or x.params.dtype != "int8" or x.params.zero_point != 0:
            return None
    terms = score_terms(emit.value, _bias(source))
    if terms is None or (terms.seen is not None and int(terms.seen.ty.shape[-1]) != keys):
        return None
    return Pending("attention", source)


def _bias(source: QdqCall) -> Expr | None:
    return source.operands[3] if len(source.operands) > 3 else None


def quantize_attention(emit: Emitter, pending: Pending, out: QuantParams) -> Stored | None:
    """Emit the attention; None if the scales of q and k do not give logits their unit."""
    source = pending.source
    q, k, v = (emit.with_layout(x, channels_last(x.layout.shape, 2)) for x in source.operands[:3])
    batch, queries, heads, head_dim = q.layout.shape
    keys = k.layout.shape[1]
    scale = source.call.attrs.scale
    softmax_scale = head_dim**-0.5 if scale is None else float(scale)
    numbers = attention_parameters(q.params, k.params, v.params, out, softmax_scale, head_dim)
    terms = score_terms(emit.value, _bias(source))
    if numbers is None or terms is None:
        return None
    biases = logit_biases(terms.constant, (batch, heads, queries, keys))
    mask = None if terms.seen is None else _mask(emit, terms.seen)
    order = _common_order(q, k, v)
    spec = AttentionSpec(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        score_shift=numbers.score_shift,
        numerator=numbers.numerator,
        norm_shift=numbers.norm_shift,
        zero_point=out.zero_point,
        out_dtype=out.dtype,
        low=out.low,
        high=out.high,
        biases=tuple((bias.shape[0], bias.shape[1]) for bias in biases),
        mask=None if mask is None else (int(mask.ty.shape[0]), int(mask.ty.shape[1])),
        indexed=order is not None,
    )
    rows = emit.rows if order is None else emit.stored_rows
    args = [*map(rows, (q, k, v)), constant(numerics.softmax_table()), *map(constant, biases)]
    args += [] if mask is None else [mask]
    args += [] if order is None else [constant(order), constant(np.argsort(order).astype(np.int32))]
    mixed = emit.composite(attention_composite(source.name, spec), args, source.name)
    return Stored(out, q.layout, rows_var=mixed, seen=terms.seen, order=order)


def _common_order(*operands: Stored) -> Rows | None:
    """Return the order in which all operands lie, token by token; None where they do not."""
    orders = [x.order for x in operands if x.order is not None and len(x.order) == x.layout.matrix[0]]
    same = len(orders) == len(operands) and all(np.array_equal(order, orders[0]) for order in orders)
    return orders[0] if same else None


def _mask(emit: Emitter, seen: Expr) -> Expr:
    """Return seen [B or 1, 1, T or 1, S] as kernels read it, uint8 [B or 1, T or 1, S]; one for all."""
    if seen not in emit.masks:
        batch, _, queries, keys = shape_of(seen) or ()
        emit.masks[seen] = emit(op.astype(emit(op.reshape(seen, (batch, queries, keys))), "uint8"))
    return emit.masks[seen]


def hidden_rows(emit: Emitter, source: QdqCall) -> Stored | None:
    """Return the attention itself: rows that see no key are zero in integers already."""
    condition, x, zeros = source.operands
    if not isinstance(x, Stored) or x.seen is None or scalar_of(zeros) != 0.0:
        return None
    seen = rows_shown(emit.value, condition)
    return x if seen is not None and seen.same_as(x.seen) else None
