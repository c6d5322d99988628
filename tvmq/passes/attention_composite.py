"""The composite of attention: numerics.attention spelt out in plain integer ops."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.passes.composite_body import Body, integer, tensor_type


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The sizes and constants of one attention, as numerics.attention names them.

    biases: the first two sizes of each, (P, 1 or heads). mask: its first two, (1 or batch, 1 or queries).
    indexed: q, k, v and the result lie in another order of rows, which an index names.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    score_shift: int
    numerator: int
    norm_shift: int
    zero_point: int
    out_dtype: str
    biases: tuple[tuple[int, int], ...] = ()
    mask: tuple[int, int] | None = None
    indexed: bool = False
    low: int | None = None  # where the result is clipped, inside of out_dtype's range; None: at its end
    high: int | None = None

    @property
    def clip(self) -> tuple[int, int]:
        """Return the least and the greatest number of the result."""
        low, high = numerics.INTEGER_RANGE[self.out_dtype]
        return low if self.low is None else self.low, high if self.high is None else self.high


def attention(site: str, spec: AttentionSpec) -> relax.Function:
    """Return f(q, k, v int8 [batch * tokens, heads * head_dim], table uint8 [128][, biases...][, mask]...).

    biases: int16 [P, 1 or heads, queries, keys]. mask: uint8 [1 or batch, 1 or queries, keys]. All as
    numerics.attention takes them.
    indexed: two last parameters, index and inverse, int32 [batch * queries]. Token i of the batches is row
    index[i] of q, k, v and of the result; inverse[index[i]] is i.
    """
    (q, k, v, table), biases, mask, index = _parameters(spec)
    body = Body()

    def split(x: relax.Var, tokens: int, axes: list[int]) -> relax.Var:
        x = body(op.take(x, index[0], axis=0, mode="clip")) if index else x
        heads = body(op.reshape(x, (spec.batch, tokens, spec.heads, spec.head_dim)))
        return body(op.permute_dims(heads, axes))

    heads = split(q, spec.queries, [0, 2, 1, 3]), split(k, spec.keys, [0, 2, 3, 1])
    logits = body(op.matmul(*heads, out_dtype="int32"))
    logits = _saturated(body, _shifted(body, logits, spec.score_shift))
    for bias in biases:
        logits = _biased(body, logits, bias)
    seen = _seen(body, mask[0]) if mask else None
    weights, total = _softmax(body, logits, table, seen)
    mixed = body(op.matmul(weights, split(v, spec.keys, [0, 2, 1, 3]), out_dtype="int32"))
    y = _rows(body, _divided(body, mixed, total, spec), spec)
    if index:
        y = body(op.take(y, index[1], axis=0, mode="clip"))
    params = [q, k, v, table, *biases, *mask, *index]
    low, high = spec.clip
    numbers = {"mask": int(spec.mask is not None), "indexed": int(spec.indexed), "low": low, "high": high}
    numbers["biases"] = len(spec.biases)
    return body.finish(params, y, "attention", site, asdict(spec) | numbers)


def _parameters(spec: AttentionSpec) -> tuple[list[relax.Var], ...]:
    """Return (q, k, v and table), the biases, the mask, (index and inverse); what spec has not is empty."""
    width, scores = spec.heads * spec.head_dim, (spec.queries, spec.keys)
    tokens = {"q": spec.queries, "k": spec.keys, "v": spec.keys}
    qkv = [relax.Var(name, tensor_type((spec.batch * n, width), "int8")) for name, n in tokens.items()]
    table = relax.Var("table", tensor_type((numerics.SOFTMAX_TABLE_SIZE,), "uint8"))
    biases = [
        relax.Var(f"bias{number}", tensor_type((*sizes, *scores), "int16"))
        for number, sizes in enumerate(spec.biases)
    ]
    masks = [] if spec.mask is None else [relax.Var("mask", tensor_type((*spec.mask, spec.keys), "uint8"))]
    order = tensor_type((spec.batch * spec.queries,), "int32")
    index = [relax.Var(name, order) for name in ("index", "inverse")] if spec.indexed else []
    return [*qkv, table], biases, masks, index


def _seen(body: Body, mask: relax.Var) -> relax.Var:
    """Emit the mask as a boolean that broadcasts against logits [B, H, T, S]."""
    batch, queries, keys = (int(d) for d in mask.ty.shape)
    seen = body(op.reshape(mask, (batch, 1, queries, keys)))
    return body(op.not_equal(seen, integer(0, "uint8")))


def _rows(body: Body, y: relax.Var, spec: AttentionSpec) -> relax.Var:
    """Emit y, int64 [B, H, T, D], as stored: with its zero point, [B * T, H * D]."""
    y = body(op.clip(body(op.add(y, integer(spec.zero_point, "int64"))), *spec.clip))
    y = body(op.permute_dims(body(op.astype(y, spec.out_dtype)), [0, 2, 1, 3]))
    return body(op.reshape(y, (spec.batch * spec.queries, spec.heads * spec.head_dim)))


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


def _divided(body: Body, mixed: relax.Var, total: relax.Var, spec: AttentionSpec) -> relax.Var:
    """Emit mixed / total * numerator / 2**norm_shift, rounded, int64."""
    reciprocal = body(op.floor_divide(integer(spec.numerator), total))
    product = body(op.multiply(body(op.astype(mixed, "int64")), body(op.astype(reciprocal, "int64"))))
    rounded = body(op.add(product, integer(1 << (spec.norm_shift - 1), "int64")))
    return body(op.right_shift(rounded, integer(spec.norm_shift, "int64")))
