"""What one call of a product takes in, and what it leaves to others."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import (
    HIDDEN,
    NORMED,
    TRUNK,
    QdqBuilder,
    Var,
    float_input,
    kernels,
    random_input,
)
from tvmq import reference
from tvmq.formats import QuantParams
from tvmq.passes.composites import attributes
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.verify_level import verify


def lowered_linear(make: QdqBuilder, result: Var, x: Var) -> dict[str, object]:
    """Lower, compare with the qdq module within a step, and return the attributes of the only composite."""
    qdq = make.module([x], result)
    lowered = LowerInteger()(qdq)
    (before,), (after,) = (reference.run(mod, [random_input(qdq)]) for mod in (qdq, lowered))
    assert float((before - after).abs().max()) <= HIDDEN.scale
    assert kernels(lowered) == [("linear", "fc")]
    return attributes(next(f for g, f in lowered.functions.items() if str(g.name_hint) != "main"))


@pytest.fixture
def start() -> tuple[QdqBuilder, Var, Var]:
    """A builder, its parameter, and a product with its bias."""
    make, x = QdqBuilder(), float_input(3, 8)
    return make, x, make.product("fc", make.stored("x", x, NORMED), 8, -8)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("relu", 100, 255), ("relu6", 100, 100 + 96), ("none", 0, 255)]
)
def test_a_clip_joins_the_product(start, name, low, high):
    make, x, product = start
    clipped = {"relu": op.nn.relu, "relu6": op.nn.relu6, "none": lambda y: y}[name](product)
    clipped = product if name == "none" else make.bind("clip", clipped)
    found = lowered_linear(make, make.stored("y", clipped, HIDDEN), x)
    assert (found["low"], found["high"], found["out_dtype"]) == (low, high, "uint8")


@pytest.mark.parametrize("left", [True, False])
def test_a_residual_stored_like_the_sum_joins_the_product(left):
    make, x = QdqBuilder(), float_input(3, 8)
    trunk = make.stored("x", x, TRUNK)
    product = make.product("fc", make.stored("x8", trunk, QuantParams(2.0**-5, 128, "uint8")), 8, -8)
    total = op.add(product, trunk) if left else op.add(trunk, product)
    found = lowered_linear(make, make.stored("y", make.bind("sum", total), TRUNK), x)
    assert (found["residual"], found["out_dtype"]) == (1, "int16")


def test_a_residual_stored_in_other_steps_is_added_in_float():
    make, x = QdqBuilder(), float_input(3, 8)
    trunk = make.stored("x", x, TRUNK)
    product = make.product("fc", make.stored("x8", trunk, QuantParams(2.0**-5, 128, "uint8")), 8, -8)
    wider = QuantParams(2.0**-8, 0, "int16")
    found = lowered_linear(make, make.stored("y", make.bind("sum", op.add(product, trunk)), wider), x)
    assert (found["residual"], found["out_dtype"]) == (0, "float32")


def test_a_product_that_nobody_stores_is_float(start):
    make, x, product = start
    assert lowered_linear(make, op.nn.softmax(product), x)["out_dtype"] == "float32"


def test_a_bias_after_a_clip_is_no_bias_of_the_product(start):
    make, x, product = start
    clipped = make.bind("clip", op.nn.relu(product))
    shifted = make.bind("shifted", op.add(clipped, make.constant(8)))
    assert lowered_linear(make, make.stored("y", shifted, HIDDEN), x)["out_dtype"] == "float32"


def test_a_sum_of_two_products_keeps_both():
    """The second bias would be lost if the first product took the second for one."""
    make, x = QdqBuilder(), float_input(3, 8)
    stored = make.stored("x", x, NORMED)
    total = op.add(make.product("a", stored, 8, -8), make.product("b", stored, 8, -8))
    qdq = make.module([x], make.stored("y", make.bind("sum", total), HIDDEN))
    lowered = LowerInteger()(qdq)
    assert sorted(kernels(lowered)) == [("linear", "a"), ("linear", "b")]
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, atol=HIDDEN.scale)


def test_a_weight_that_is_an_input_is_multiplied_in_float():
    make, x = QdqBuilder(), float_input(3, 8)
    weight = relax.Var("w", relax.TensorType((8, 8), "float32"))
    product = make.bind("fc", op.matmul(make.stored("x", x, NORMED), weight))
    assert kernels(LowerInteger()(make.module([x, weight], make.stored("y", product, HIDDEN)))) == []


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "more", "groups"),
    [
        ((3, 3), (1, 1), (1, 1), {}, 1),
        ((3, 2), (2, 1), (0, 1, 2, 0), {"dilation": (2, 1)}, 1),
        ((1, 1), (2, 2), (0, 0), {}, 1),
        ((3, 3), (1, 1), (1, 1), {"groups": 3}, 1),  # fewer groups fill vectors
        ((5, 5), (2, 2), (2, 2), {"groups": 6}, 1),  # of too few channels for a depthwise kernel
    ],
)
def test_a_convolution_is_one_call_with_its_bias_and_its_clip(kernel, strides, padding, more, groups):
    make, x = QdqBuilder(), float_input(2, 6, 9, 8)
    weight = make.weight((6, 6 // more.get("groups", 1), *kernel), 0, -8)
    conv = make.bind("conv", op.nn.conv2d(make.stored("x", x, NORMED), weight, strides, padding, **more))
    biased = make.bind("conv.bias", op.add(conv, make.constant(1, 6, 1, 1)))
    qdq = make.module([x], make.stored("y", make.bind("clip", op.clip(biased, 0, 6)), HIDDEN))
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == [("conv2d", "conv")]
    verify(lowered, "integer")
    found = attributes(next(f for g, f in lowered.functions.items() if str(g.name_hint) != "main"))
    assert (found["low"], found["high"], found["groups"]) == (100, 196, groups)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, rtol=0, atol=HIDDEN.scale)
    assert (values[0] == values[1]).float().mean() > 0.9
    assert values[0].unique().numel() > 5


def test_a_trunk_and_its_uint8_copy_are_stored_by_one_call():
    make, x = QdqBuilder(), float_input(1, 4, 5, 5)
    weights = [make.weight((4, 4, 1, 1), 0, -8) for _ in range(2)]
    conv = make.bind("conv", op.nn.conv2d(make.stored("x", x, NORMED), weights[0]))
    trunk = make.stored("trunk", conv, TRUNK)
    copy = make.stored("copy", trunk, QuantParams(TRUNK.scale * 16, 128, "uint8"))
    last = make.bind("last", op.nn.conv2d(copy, weights[1]))
    total = make.stored("sum", make.bind("sum", op.add(last, trunk)), TRUNK)
    qdq = make.module([x], total)
    lowered = LowerInteger()(qdq)
    verify(lowered, "integer")
    assert kernels(lowered) == [("conv2d", "conv"), ("conv2d", "last")]
    first = next(f for f in lowered.functions.values() if attributes(f).get("site") == "conv")
    assert (attributes(first)["copy_shift"], attributes(first)["copy_zero_point"]) == (4, 128)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, rtol=0, atol=20 * TRUNK.scale)
