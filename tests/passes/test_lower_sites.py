"""Norm, attention, tables and sums: integer where their operands are stored as they want, float where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import (
    ACTIVATED,
    HIDDEN,
    NORMED,
    TRUNK,
    QdqBuilder,
    Var,
    float_input,
    kernels,
    random_input,
)
from tvmq import numerics, reference
from tvmq.build import traced_values
from tvmq.exactness import analyse
from tvmq.formats import QuantParams
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name

SIGNED = QuantParams(2.0**-5, 0, "int8")


def lowered(make: QdqBuilder, result: Var, x: Var, step: float) -> tuple[list[tuple[str, str]], set[str]]:
    """Lower and compare within a step; return the kernels, and the operators of main."""
    qdq = make.module([x], result)
    after = LowerInteger()(qdq)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, after)]
    np.testing.assert_allclose(*values, rtol=0, atol=step)
    return kernels(after), {op_name(b.value) for b in bindings(after["main"])}


@pytest.mark.parametrize(
    ("stored", "axes", "kernel"),
    [(TRUNK, [-1], True), (TRUNK, [1], False), (NORMED, [-1], False)],
    ids=["int16 rows", "another axis", "8 bits are too few"],
)
def test_a_norm_over_the_last_axis_of_int16_is_integer(stored, axes, kernel):
    make, x = QdqBuilder(), float_input(2, 6, 6)
    gamma, beta = make.constant(6), make.constant(6)
    y = op.nn.layer_norm(make.stored("x", x, stored), gamma, beta, axes=axes, epsilon=1e-5)
    found, ops = lowered(make, make.stored("y", make.bind("norm", y), NORMED), x, NORMED.scale)
    assert (found == [("layer_norm", "norm")]) is kernel
    assert ("nn.layer_norm" in ops) is not kernel


def test_a_function_joins_the_product_before_it_if_nothing_else_reads_that():
    make, x = QdqBuilder(), float_input(3, 8)
    hidden = make.stored("fc", make.product("fc", make.stored("x", x, NORMED), 8, -8), HIDDEN)
    active = make.stored("gelu.0", make.bind("gelu.0", op.nn.gelu(hidden)), ACTIVATED)
    assert lowered(make, active, x, ACTIVATED.scale)[0] == [("linear", "fc")]


def test_a_function_beside_another_reader_is_a_table_of_its_own():
    make, x = QdqBuilder(), float_input(3, 8)
    hidden = make.stored("fc", make.product("fc", make.stored("x", x, NORMED), 8, -8), HIDDEN)
    active = make.stored("gelu.0", make.bind("gelu.0", op.nn.gelu(hidden)), ACTIVATED)
    both = op.concat([active, hidden], axis=0)
    found, _ = lowered(make, both, x, HIDDEN.scale)
    assert sorted(found) == [("linear", "fc"), ("table", "gelu.0")]


CODED = replace(ACTIVATED, codes=(1, 3, 4, 6, 7, 9, 14, 20, 33, 60, 100, 180))


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("gelu.0", [("linear", "fc")]),
        ("fc", [("linear", "fc")]),
        ("norm", [("layer_norm", "norm"), ("table", "norm.code")]),
    ],
)
def test_codes_are_written_by_the_table_that_makes_a_value_or_one_after_it(made, found):
    make, x = QdqBuilder(), float_input(30, 8)
    if made == "norm":
        y = make.layer_norm("norm", make.stored("x", x, TRUNK), 1.0)
    else:
        y = make.product("fc", make.stored("x", x, NORMED), 8, -8)
        y = y if made == "fc" else make.bind("gelu.0", op.nn.gelu(make.stored("fc", y, HIDDEN)))
    qdq = make.module([x], make.stored(made, y, CODED))
    after = LowerInteger()(qdq)
    inputs = [random_input(qdq)]
    wanted, got = (reference.run(mod, inputs)[0] for mod in (qdq, after))
    codes = torch.tensor([(code - CODED.zero_point) * CODED.scale for code in CODED.codes])
    assert len(got.unique()) > 4
    assert set(got.unique().tolist()) <= set(codes.tolist())
    # At an edge between two codes, a float product and its integers may fall on either side.
    places = [torch.searchsorted(codes, value) for value in (wanted, got)]
    assert (places[0] - places[1]).abs().max() <= 1
    assert (places[0] != places[1]).float().mean() < 0.02
    assert kernels(after) == found


def test_codes_that_another_reader_does_not_want_are_taken_for_one_alone():
    make, x = QdqBuilder(), float_input(3, 8)
    stored = make.stored("fc", make.product("fc", make.stored("x", x, NORMED), 8, -8), HIDDEN)
    quantized = next(binding.var for binding in make.bindings if binding.var.name == "fc.q")
    coded = make.bind("fc.code", op.take(relax.const(numerics.nearest_codes((3, 90, 200))), quantized))
    scale, zero = relax.const(HIDDEN.scale, "float32"), relax.const(HIDDEN.zero_point, "uint8")
    both = op.concat([stored, make.bind("fc.few", op.dequantize(coded, scale, zero, axis=-1))], axis=0)
    found, _ = lowered(make, both, x, HIDDEN.scale)
    assert sorted(found) == [("linear", "fc"), ("table", "fc.code")]


@pytest.mark.parametrize(("stored", "out"), [(SIGNED, NORMED), (NORMED, SIGNED)])
def test_only_uint8_goes_through_a_table(stored, out):
    make, x = QdqBuilder(), float_input(3, 8)
    y = make.stored("y", make.bind("tanh.0", op.tanh(make.stored("x", x, stored))), out)
    found, ops = lowered(make, y, x, out.scale)
    assert found == []
    assert "tanh" in ops


@pytest.mark.parametrize("broadcast", [False, True])
def test_a_sum_of_int16_in_equal_steps_is_an_integer_sum(broadcast):
    make, x = QdqBuilder(), float_input(3, 8)
    a = make.stored("a", x, TRUNK)
    first = make.bind("row", op.strided_slice(a, axes=[0], begin=[0], end=[1])) if broadcast else a
    clipped = make.bind("relu.0", op.nn.relu(make.bind("sum", op.add(a, first))))
    found, ops = lowered(make, make.stored("y", clipped, TRUNK), x, 0.0)
    assert found == []
    assert {"nn.relu", "round"}.isdisjoint(ops)
    assert "clip" in ops


OTHER = QuantParams(2.0**-8, 0, "int16")


@pytest.mark.parametrize(("a", "b", "out"), [(TRUNK, OTHER, TRUNK), (TRUNK, TRUNK, OTHER)])
def test_a_sum_in_unequal_steps_is_a_float_sum(a, b, out):
    make, x = QdqBuilder(), float_input(3, 8)
    total = make.bind("sum", op.add(make.stored("a", x, a), make.stored("b", x, b)))
    assert "clip" not in lowered(make, make.stored("y", total, out), x, 0.0)[1]


@pytest.mark.parametrize("out", [TRUNK, NORMED])
def test_rows_of_a_float_table_are_taken_from_an_integer_one(out):
    make, ids = QdqBuilder(), relax.Var("ids", relax.TensorType((3,), "int32"))
    table = make.constant(5, 8)
    y = make.stored("words", make.bind("words", op.take(table, ids, axis=0, mode="fast")), out)
    after = LowerInteger()(make.module([ids], y))
    assert [op_name(b.value) for b in bindings(after["main"])][:2] == ["take", "dequantize"]
    (taken,) = reference.run(after, [torch.tensor([4, 0, 4], dtype=torch.int32)])
    low, high = numerics.INTEGER_RANGE[out.dtype]
    codes = np.clip(np.floor(table.value.numpy() / out.scale + 0.5) + out.zero_point, low, high)
    np.testing.assert_allclose(taken, ((codes - out.zero_point) * out.scale)[[4, 0, 4]], rtol=1e-6)


def test_a_norm_that_is_trunk_and_input_of_a_product_stores_both_at_once():
    make, x = QdqBuilder(), float_input(1, 6, 8)
    trunk = make.stored("norm", make.layer_norm("norm", make.stored("x", x, TRUNK), 0.3), TRUNK)
    product = make.product("fc", make.stored("norm.uint8", trunk, NORMED), 8, -9)
    total = make.stored("y", make.bind("y", op.add(product, trunk)), TRUNK)
    qdq = make.module([x], total)
    after = LowerInteger()(qdq)
    assert kernels(after) == [("layer_norm", "norm"), ("linear", "fc")]
    assert "right_shift" not in {op_name(b.value) for b in bindings(after["main"])}
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, after)]
    np.testing.assert_allclose(*values, rtol=0, atol=4 * NORMED.scale)
    names = [trace.id for _, trace in traced_values(after, analyse(after))]
    assert names[-3:] == ["norm", "norm.uint8", "fc"]
