"""Attention is recognised through any arrangement of its heads."""

import math
from collections import Counter

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.golden import assert_same_function, assert_untouched
from tvmq.passes.raise_attention import RaiseAttention
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.remove_no_ops import RemoveNoOps

B, T, H, D = 2, 5, 3, 4


def c(number):
    return relax.const(number, "float32")


def attention(scores=None, query=None, *, flat=False, head_axes=(0, 2, 1, 3), masks=(), guard=None):
    """Return softmax(scores(q k^T)) v of three inputs [B, T, H * D], as exporters write it."""
    builder = relax.BlockBuilder()
    emit = builder.emit
    params = [relax.Var(n, relax.TensorType((B, T, H * D), "float32")) for n in "qkv"]
    params += [relax.Var(f"m{i}", relax.TensorType(s, "float32")) for i, s in enumerate(masks)]

    def heads(x):
        y = emit(op.permute_dims(emit(op.reshape(x, (B, T, H, D))), list(head_axes)))
        return emit(op.reshape(y, (B * H, T, D))) if flat else y

    with builder.function("main", params):
        with builder.dataflow():
            q, k, v = (heads(p) for p in params[:3])
            q = q if query is None else emit(query(q))
            rank = 3 if flat else 4
            s = emit(op.matmul(q, emit(op.permute_dims(k, [*range(rank - 2), rank - 1, rank - 2]))))
            s = emit(op.reshape(s, (B, H, T, T))) if flat else s
            s = s if scores is None else scores(s, emit, params[3:])
            p = emit(op.nn.softmax(s))
            p = p if guard is None else guard(p, s, emit)
            p = emit(op.reshape(p, (B * H, T, T))) if flat else p
            y = emit(op.matmul(p, v))
            y = emit(op.reshape(y, (B, H, T, D))) if flat else y
            y = emit(op.permute_dims(y, [0, 2, 1, 3]))
            out = builder.emit_output(op.reshape(y, (B, T, H * D)))
        builder.emit_func_output(out)
    return builder.get()


def raised(mod):
    """Return the one attention call of mod after the pass, which must leave no permutation."""
    after = RemoveNoOps()(RaiseAttention()(mod))
    assert_same_function(mod, after)
    assert_untouched(after, RaiseAttention())
    calls = [b.value for b in bindings(after["main"])]
    assert {op_name(e) for e in calls} <= {"reshape", "nn.attention", "nn.attention_bias", "add"}
    return next(e for e in calls if "attention" in op_name(e))


@pytest.mark.parametrize("flat", [False, True])
def test_a_scaled_query(flat):
    call = raised(attention(query=lambda q: op.multiply(q, c(0.25)), flat=flat))
    assert op_name(call) == "nn.attention"
    assert float(call.attrs.scale) == 0.25
    assert [int(d) for d in call.ty.shape] == [B, T, H, D]


def test_divided_scores():
    assert float(raised(attention(lambda s, emit, m: emit(op.divide(s, c(2.0))))).attrs.scale) == 0.5


def test_a_position_bias_and_a_window_mask_become_one_constant():
    position = np.random.default_rng(0).normal(size=(1, H, T, T)).astype(np.float32)
    window = np.random.default_rng(1).normal(size=(B, 1, T, T)).astype(np.float32)

    def scores(s, emit, masks):
        s = emit(op.add(s, relax.const(position)))
        s = emit(op.reshape(s, (1, B, H, T, T)))
        s = emit(op.add(s, relax.const(window[None])))
        return emit(op.reshape(s, (B, H, T, T)))

    call = raised(attention(scores, flat=True))
    np.testing.assert_array_equal(call.args[3].value.numpy(), position + window)


def test_a_bias_that_is_the_same_for_all_is_stored_once():
    position = np.random.default_rng(0).normal(size=(T, T)).astype(np.float32)
    call = raised(attention(lambda s, emit, m: emit(op.add(s, relax.const(position)))))
    assert [int(d) for d in call.args[3].ty.shape] == [1, 1, T, T]


def test_a_mask_from_an_input():
    call = raised(attention(lambda s, emit, m: emit(op.add(s, m[0])), masks=[(B, 1, 1, T)]))
    assert [int(d) for d in call.args[3].ty.shape] == [B, 1, 1, T]


def test_the_guard_for_hidden_rows_moves_behind():
    def scores(s, emit, masks):
        return emit(op.add(s, emit(op.where(emit(op.greater(masks[0], c(0.8))), c(0.0), c(-math.inf)))))

    def guarded(p, s, emit):
        seen = emit(op.logical_not(emit(op.equal(s, c(-math.inf)))))
        most = emit(op.max(emit(op.astype(seen, "int8")), axis=-1, keepdims=True))
        hidden = emit(op.logical_not(emit(op.astype(most, "bool"))))
        return emit(op.where(hidden, emit(op.full_like(p, c(0.0))), p))

    # With masks of five normal numbers above 0.8, some rows are hidden and some are not.
    mod = attention(scores, masks=[(B, 1, T, T)], guard=guarded)
    after = RemoveNoOps()(RaiseAttention()(mod))
    assert_same_function(mod, after)
    assert_untouched(after, RaiseAttention())
    count = Counter(op_name(b.value) for b in bindings(after["main"]))
    assert (count["nn.attention_bias"], count["nn.softmax"], count["permute_dims"]) == (1, 0, 0)


def test_a_bias_that_is_scaled_with_the_scores_stays():
    def scores(s, emit, masks):
        return emit(op.multiply(emit(op.add(s, masks[0])), c(0.5)))

    assert_untouched(attention(scores, masks=[(B, 1, 1, T)]), RaiseAttention())


def split_heads(arrange):
    """Return attention over q, k, v [B, H, T, D] or whatever arrange makes of them."""
    builder = relax.BlockBuilder()
    q, k, v = (relax.Var(n, relax.TensorType((B, H, T, D), "float32")) for n in "qkv")
    with builder.function("main", [q, k, v]):
        with builder.dataflow():
            a, b, d = (arrange(x, builder.emit) for x in (q, k, v))
            s = builder.emit(op.matmul(a, builder.emit(op.permute_dims(b, [0, 1, 3, 2]))))
            out = builder.emit_output(op.matmul(builder.emit(op.nn.softmax(s)), d))
        builder.emit_func_output(out)
    return builder.get()


def test_heads_that_are_apart_already_count_as_batch():
    call = raised(split_heads(lambda x, emit: x))
    assert [int(d) for d in call.ty.shape] == [B * H, T, 1, D]


def test_heads_that_lie_otherwise_stay():
    interleaved = split_heads(
        lambda x, emit: emit(op.permute_dims(emit(op.reshape(x, (B, T, D, H))), [0, 3, 1, 2]))
    )
    assert_untouched(interleaved, RaiseAttention())
