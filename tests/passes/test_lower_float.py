"""The way back to float: each value once, with all that was pending still done to it."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.relax import op

from tests.passes.qdq_graphs import HIDDEN, NORMED, TRUNK, QdqBuilder, float_input, kernels, random_input
from tvmq import reference
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name


def same(make: QdqBuilder, result: object, x: object, tolerance: float = 1e-5) -> list[str]:
    """Check that lowering keeps the function, and return main's operators."""
    qdq = make.module([x], result)
    lowered = LowerInteger()(qdq)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, rtol=0, atol=tolerance)
    return [op_name(b.value) or "composite" for b in bindings(lowered["main"])][:-1]


def up_to_three(x):
    return op.clip(x, 0, 3)


@pytest.mark.parametrize(
    ("clip", "name"), [(op.nn.relu, "nn.relu"), (op.nn.relu6, "clip"), (up_to_three, "clip")]
)
def test_a_float_product_keeps_bias_residual_and_clip(clip, name):
    make, x = QdqBuilder(), float_input(3, 8)
    product = make.product("fc", make.stored("x", x, NORMED), 8, -8)
    total = make.bind("sum", op.add(product, make.stored("r", x, TRUNK)))
    ops = same(make, op.nn.softmax(make.bind("clip", clip(total))), x, 2e-3)
    assert ops.index("composite") < ops.index("add")
    assert ops[-2:] == [name, "nn.softmax"]


def test_a_float_transposed_convolution_keeps_bias_and_clip():
    make, x = QdqBuilder(), float_input(1, 3, 4, 4)
    up = make.bind("up", op.nn.conv2d_transpose(make.stored("x", x, NORMED), make.weight((3, 2, 2, 2), 1), 2))
    total = make.bind("up.bias", op.add(up, make.constant(1, 2, 1, 1)))
    ops = same(make, op.nn.softmax(make.bind("relu.0", op.nn.relu(total))), x)
    assert ops[-4:] == ["nn.conv2d_transpose", "add", "nn.relu", "nn.softmax"]


def test_a_stored_value_is_dequantized_once_for_all_float_readers():
    make, x = QdqBuilder(), float_input(3, 8)
    stored = make.stored("x", x, HIDDEN)
    total = op.add(make.bind("a", op.exp(stored)), make.bind("b", op.sin(stored)))
    assert same(make, total, x).count("dequantize") == 1


def test_a_product_runs_once_for_all_float_readers():
    make, x = QdqBuilder(), float_input(3, 8)
    product = make.product("fc", make.stored("x", x, NORMED), 8, -8)
    clipped = make.bind("relu.0", op.nn.relu(product))
    norm = make.layer_norm("norm", make.stored("r", x, TRUNK), 0.3)  # pending: no quantize follows
    parts = [
        make.bind(f"f{i}", function(value))
        for i, (function, value) in enumerate(
            [(op.exp, product), (op.sin, product), (op.nn.softmax, clipped), (op.cos, norm), (op.sin, norm)]
        )
    ]
    joined = op.concat(parts, axis=0)
    ops = same(make, joined, x, 2e-3)
    assert (ops.count("composite"), ops.count("nn.layer_norm"), ops.count("nn.relu")) == (2, 1, 1)
    lowered = LowerInteger()(make.module([x], joined))
    assert [site for site, _ in reference.trace(lowered, [random_input(lowered)])] == ["fc", "fc.2"]


def test_a_weight_read_by_a_float_site_keeps_its_scales():
    make, x = QdqBuilder(), float_input(3, 8)
    product = make.bind("fc", op.matmul(x, make.weight((8, 5), 1)))  # x is not stored
    assert same(make, product, x) == ["dequantize", "matmul"]


def test_tuples_are_looked_into():
    make, x = QdqBuilder(), float_input(4, 8)
    halves = make.bind("halves", op.split(make.stored("x", x, HIDDEN), 2, axis=0))
    joined = op.concat([make.bind("h1", halves[1]), make.bind("h0", halves[0])], axis=0)
    assert same(make, joined, x)[-1] == "concat"
    assert kernels(LowerInteger()(QdqBuilder().module([x], op.exp(x)))) == []
