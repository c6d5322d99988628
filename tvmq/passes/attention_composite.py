"""The composite of attention: numerics.attention spelt out in plain integer ops."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.passes.composite_body import Body, integer, tensor_type


def attention(
    site: str,
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    score_shift: int,
    numerator: int,
    norm_shift: int,
    zero_point: int,
    out_dtype: str,
    biases: Sequence[tuple[int, int]] = (),
    mask: tuple[int, int] | None = None,
    indexed: bool = False,
) -> relax.Function:
    """Return f(q, k, v int8 [batch * tokens, heads * head_dim], table uint8 [128][, biases...][, mask]...).

    biases: the first two sizes of each int16 [P, 1 or heads, queries, keys]. mask: the first two of uint8
    [1 or batch, 1 or queries, keys]. All as numerics.attention takes them.
    indexed: two last parameters, index and inverse, int32 [batch * queries]. Token i of the batches is row
    index[i] of q, k, v and of the result; inverse[index[i]] is i.
    """
    width = heads * head_dim
    q = relax.Var("q", tensor_type((batch * queries, width), "int8"))
    k = relax.Var("k", tensor_type((batch * keys, width), "int8"))
    v = relax.Var("v", tensor_type((batch * keys, width), "int8"))
    table = relax.Var("table", tensor_type((numerics.SOFTMAX_TABLE_SIZE,), "uint8"))
    params = [q, k, v, table]
    body = Body()

    index = [relax.Var(n, tensor_type((batch * queries,), "int32")) for n in ("index", "inverse")]

    def split(x: relax.Var, tokens: int, axes: list[int]) -> relax.Var:
        x = body(op.take(x, index[0], axis=0, mode="fast")) if indexed else x
        return body(op.permute_dims(body(op.reshape(x, (batch, tokens, heads, head_dim))), axes))

    logits = body(op.matmul(split(q, queries, [0, 2, 1, 3]), split(k, keys, [0, 2, 3, 1]), out_dtype="int32"))
    logits = _saturated(body, _shifted(body, logits, score_shift))
    for number, sizes in enumerate(biases):
        params.append(relax.Var(f"bias{number}", tensor_type((*sizes, queries, keys), "int16")))
        logits = _biased(body, logits, params[-1])
    seen = None
    if mask is not None:
        params.append(relax.Var("mask", tensor_type((*mask, keys), "uint8")))
        seen = body(op.reshape(params[-1], (mask[0], 1, mask[1], keys)))
        seen = body(op.not_equal(seen, integer(0, "uint8")))
    weights, total = _softmax(body, logits, table, seen)
    mixed = body(op.matmul(weights, split(v, keys, [0, 2, 1, 3]), out_dtype="int32"))
    y = _divided(body, mixed, total, numerator=numerator, norm_shift=norm_shift)
    low, high = numerics.INTEGER_RANGE[out_dtype]
    y = body(op.clip(body(op.add(y, integer(zero_point, "int64"))), low, high))
    y = body(op.permute_dims(body(op.astype(y, out_dtype)), [0, 2, 1, 3]))
    y = body(op.reshape(y, (batch * queries, width)))
    if indexed:
        params += index
        y = body(op.take(y, index[1], axis=0, mode="fast"))
    attrs = {
        "batch": batch,
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "head_dim": head_dim,
        "score_shift": score_shift,
        "numerator": numerator,
        "norm_shift": norm_shift,
        "zero_point": zero_point,
        "out_dtype": out_dtype,
        "biases": len(biases),
        "mask": int(mask is not None),
        "indexed": int(indexed),
    }
    return body.finish(params, y, "attention", site, attrs)


def _shifted(body: Body, logits: relax.Var, score_shift: int) -> relax.Var:
    """Emit numerics.round_shift."""
    if score_shift > 0:
        half = integer(1 << (score_shift - 1))
        return body(op.right_shift(body(op.add(logits, half)), integer(score_shift)))
    return body(op.left_shift(logits, integer(-score_shift))) if score_shift else logits


def _saturated(body: Body, logits: relax.Var) -> relax.Var:
    return body(op.clip(logits, *numerics.INTEGER_RANGE["int16"]))


def _biased(body: Body, logits: relax.Var, bias: relax.Var) -> relax.Var:
    """Emit logits [B, H, T, S] + bias [P, 1 or H, T, S], which repeats along the batch."""
    shape, period = [int(d) for d in logits.ty.shape], int(bias.ty.shape[0])
    wide = body(op.astype(bias, "int32"))
    if period in (1, shape[0]):
        return _saturated(body, body(op.add(logits, wide)))
    grouped = body(op.reshape(logits, (shape[0] // period, period, *shape[1:])))
    return _saturated(body, body(op.reshape(body(op.add(grouped, wide)), shape)))


def _softmax(
    body: Body, logits: relax.Var, table: relax.Var, seen: relax.Var | None
) -> tuple[relax.Var, relax.Var]:
    """Emit the weight of every key, uint8 as logits, and their sums, int32 [..., 1]."""
    logits = body(op.maximum(logits, integer(numerics.LEAST_LOGIT)))
    if seen is not None:
        logits = body(op.where(seen, logits, integer(numerics.HIDDEN_LOGIT)))
    top = body(op.max(logits, axis=-1, keepdims=True))
    distance = body(op.minimum(body(op.subtract(top, logits)), integer(numerics.SOFTMAX_TABLE_SIZE - 1)))
    weights = body.lookup(distance, table, [int(d) for d in logits.ty.shape])
    if seen is not None:
        weights = body(op.where(seen, weights, integer(0, "uint8")))
    total = body(op.sum(body(op.astype(weights, "int32")), axis=-1, keepdims=True))
    return weights, total if seen is None else body(op.maximum(total, integer(1)))


def _divided(body: Body, mixed: relax.Var, total: relax.Var, *, numerator: int, norm_shift: int) -> relax.Var:
    """Emit mixed / total * numerator / 2**norm_shift, rounded, int64."""
    reciprocal = body(op.floor_divide(integer(numerator), total))
    product = body(op.multiply(body(op.astype(mixed, "int64")), body(op.astype(reciprocal, "int64"))))
    rounded = body(op.add(product, integer(1 << (norm_shift - 1), "int64")))
    return body(op.right_shift(rounded, integer(norm_shift, "int64")))
