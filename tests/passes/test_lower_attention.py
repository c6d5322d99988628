"""Attention is integer where its logits have a unit and what is added to them is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import NORMED, QdqBuilder, Var, attention, float_input, kernels, random_input
from tvmq import numerics, reference
from tvmq.formats import QuantParams
from tvmq.passes.composites import attributes
from tvmq.passes.hidden_rows import finite_mask, zero_hidden_rows
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name

UNIT = QuantParams(float(np.float32(2.0**-3 / (0.5 * np.log2(np.e) * 14) ** 0.5)), 0, "int8")
SIGNED = QuantParams(2.0**-5, 0, "int8")
SEEN = relax.Var("seen", relax.TensorType((2, 1, 1, 6), "bool"))


def operands(make: QdqBuilder, x: Var, params: QuantParams = UNIT) -> list[Var]:
    return [make.stored(name, x, params) for name in "qkv"]


def run(mod: tvm.IRModule, seen: np.ndarray | None = None) -> np.ndarray:
    given = [random_input(mod)] + ([] if seen is None else [torch.from_numpy(seen)])
    return reference.run(mod, given)[0].numpy()


def test_attention_whose_logits_have_no_unit_stays_float():
    make, x = QdqBuilder(), float_input(1, 6, 2, 4)
    y = make.bind("attn", op.nn.attention(*operands(make, x, SIGNED), scale=0.5))
    after = LowerInteger()(make.module([x], make.stored("y", y, NORMED)))
    assert kernels(after) == []  # 2**-10 * scale * log2(e) * 14 is no power of two
    assert "nn.attention" in {op_name(b.value) for b in bindings(after["main"])}


def test_attention_with_a_causal_mask_stays_float():
    make, x = QdqBuilder(), float_input(1, 6, 2, 4)
    masked = make.bind("attn", op.nn.attention(*operands(make, x), scale=0.5, causal_mask="TopLeft"))
    assert kernels(LowerInteger()(make.module([x], make.stored("y", masked, NORMED)))) == []
    assert ("attention", "attn") in kernels(LowerInteger()(attention()))


@pytest.mark.parametrize(
    ("shape", "biases"), [((1, 2, 6, 6), 1), ((2, 1, 1, 6), 1), ((2, 2, 6, 6), 1), (None, 2)]
)
def test_a_constant_bias_is_added_to_the_logits(shape, biases):
    make, x = QdqBuilder(), float_input(2, 6, 2, 4)
    rng = np.random.default_rng(1)
    if shape is None:  # for each head, plus for each window
        bias = rng.normal(0, 2, (1, 2, 6, 6)) + rng.choice([0, -100], (2, 1, 6, 6), p=[0.8, 0.2])
    else:
        bias = rng.normal(0, 2, shape)
    constant = relax.const(bias.astype(np.float32))
    y = make.bind("attn", op.nn.attention(*operands(make, x), constant, scale=0.5))
    qdq = make.module([x], make.stored("y", y, NORMED))
    after = LowerInteger()(qdq)
    (described,) = [attributes(f) for f in after.functions.values() if attributes(f)]
    assert (described["biases"], described["mask"]) == (biases, 0)
    np.testing.assert_allclose(run(after), run(qdq), rtol=0, atol=3 * NORMED.scale)
    assert np.abs(run(after) - run(qdq)).mean() < 0.4 * NORMED.scale


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_keys_that_an_input_hides_have_no_weight(guarded, causal):
    make, x = QdqBuilder(), float_input(2, 6, 2, 4)
    seen = SEEN
    if causal:
        triangle = relax.const(np.tril(np.ones((1, 1, 6, 6), bool)))
        seen = make.bind("both", op.bitwise_and(SEEN, triangle))
    graph = type("Graph", (), {"emit": lambda _, e: make.bind(f"t{len(make.bindings)}", e)})()
    y = make.bind("attn", op.nn.attention(*operands(make, x), finite_mask(graph, seen), scale=0.5))
    if guarded:
        stored = make.stored("y", y, NORMED)
        result = make.bind("rows", op.reshape(zero_hidden_rows(graph, stored, seen), (2, 6, 8)))
    else:
        result = make.stored("y", y, NORMED)
    qdq = make.module([x, SEEN], result)
    after = LowerInteger()(qdq)
    assert kernels(after) == [("attention", "attn")]
    assert "where" not in {op_name(b.value) for b in bindings(after["main"])}
    shown = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1]], bool)[:, None, None]
    close = run(after, shown) - run(qdq, shown)
    empty = 2 if causal and not guarded else 0  # rows that see nothing: zero here, a mean of all values there
    np.testing.assert_allclose(close[:, empty:], 0, rtol=0, atol=3 * NORMED.scale)
    assert not run(after, np.zeros_like(shown)).any()


def test_attentions_share_one_mask():
    make, x = QdqBuilder(), float_input(2, 6, 2, 4)
    graph = type("Graph", (), {"emit": lambda _, e: make.bind(f"t{len(make.bindings)}", e)})()
    split = operands(make, x)
    both = [
        make.bind(name, op.nn.attention(*split, finite_mask(graph, SEEN), scale=0.5)) for name in ("a", "b")
    ]
    parts = [make.stored(f"y{i}", y, NORMED) for i, y in enumerate(both)]
    after = LowerInteger()(make.module([x, SEEN], op.concat(parts, axis=0)))
    assert kernels(after) == [("attention", "a"), ("attention", "b")]
    assert [op_name(b.value) for b in bindings(after["main"])].count("astype") == 1


def test_a_bias_that_is_computed_stays_float():
    make, x = QdqBuilder(), float_input(2, 6, 2, 4)
    bias = relax.Var("bias", relax.TensorType((1, 1, 6, 6), "float32"))
    y = make.bind("attn", op.nn.attention(*operands(make, x), bias, scale=0.5))
    assert kernels(LowerInteger()(make.module([x, bias], make.stored("y", y, NORMED)))) == []


@pytest.mark.parametrize("joined", [1, 2])
def test_queries_of_several_permuted_rows_are_gathered_first(joined):
    make, x = QdqBuilder(), float_input(12, 8)
    index = relax.const(np.random.default_rng(0).permutation(12).astype(np.int32))
    split = []
    for name, stored in zip("qkv", operands(make, x), strict=True):
        taken = make.bind(f"{name}.rows", op.take(stored, index, axis=0, mode="fast"))
        tokens = make.bind(f"{name}.tokens", op.reshape(taken, (12 // joined, 8 * joined)))
        split.append(make.bind(f"{name}.heads", op.reshape(tokens, (1, 12 // joined, 2, 4 * joined))))
    y = make.bind("attn", op.nn.attention(*split, scale=0.5))
    qdq = make.module([x], make.stored("y", y, NORMED))
    after = LowerInteger()(qdq)
    (described,) = [attributes(f) for f in after.functions.values() if attributes(f)]
    assert described["indexed"] == int(joined == 1)
    np.testing.assert_allclose(run(after), run(qdq), rtol=0, atol=3 * NORMED.scale)


def test_the_unit_of_the_logits_is_that_of_the_numerics():
    assert numerics.logit_bias(np.array([0.0, np.log(2), -np.inf])).tolist() == [0, 14, -(2**15)]
