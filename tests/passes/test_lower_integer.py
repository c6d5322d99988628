"""Whole graphs: the golden module of an mlp, and that lowering changes no value by more than rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes import qdq_graphs
from tests.passes.qdq_graphs import HIDDEN, NORMED, QdqBuilder, float_input, kernels, random_input
from tvmq import reference
from tvmq.errors import UnsupportedModelError
from tvmq.formats import QuantParams
from tvmq.passes import composites
from tvmq.passes.epilogue import Epilogue
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.verify_level import verify

WEIGHT = np.array([[1, -2], [3, 127]], np.int8)


@I.ir_module
class Qdq:
    @R.function
    def main(x: R.Tensor((1, 3, 2), "float32")) -> R.Tensor((1, 3, 2), "float32"):
        with R.dataflow():
            xq = R.quantize(x, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1, out_dtype="uint8")
            xdq = R.dequantize(xq, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1)
            weight = R.dequantize(
                R.const(WEIGHT),
                R.const(np.array([0.25, 0.125], np.float32)),
                R.const(np.zeros(2, np.int8)),
                axis=1,
            )
            fc = R.matmul(xdq, weight)
            biased = R.add(fc, R.const(np.array([3.0, -1.0], np.float32)))
            y = R.quantize(biased, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1, out_dtype="uint8")
            ydq = R.dequantize(y, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1)
            R.output(ydq)
        return ydq


# Ratios 0.5 * [1/4, 1/8] / 1 are shifts by 3 and 4. The bias in accumulator steps is [24, -16]; zero point 10
# takes away 10 * [4, 125]; the rounding halves are [4, 8]; zero point 7 comes in as 7 << [3, 4].
BIAS = np.array([24 - 40 + 4 + 56, -16 - 1250 + 8 + 112], np.int32)
SHIFT = np.array([3, 4], np.int32)


@I.ir_module
class Integer:
    @R.function(private=True)
    def linear_0(
        x: R.Tensor((3, 2), "uint8"),
        weight: R.Tensor((2, 2), "int8"),
        bias: R.Tensor((2,), "int32"),
        shift: R.Tensor((2,), "int32"),
    ) -> R.Tensor((3, 2), "uint8"):
        return x  # stands for composites.linear, put in its place below

    @R.function
    def main(x: R.Tensor((1, 3, 2), "float32")) -> R.Tensor((1, 3, 2), "float32"):
        cls = Integer
        with R.dataflow():
            xq = R.quantize(x, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1, out_dtype="uint8")
            rows = R.reshape(xq, R.shape([3, 2]))
            fc = cls.linear_0(rows, R.const(WEIGHT), R.const(BIAS), R.const(SHIFT))
            dense = R.reshape(fc, R.shape([1, 3, 2]))
            real = R.dequantize(dense, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1)
            out: R.Tensor((1, 3, 2), "float32") = real
            R.output(out)
        return out


def test_a_linear_between_quantize_and_dequantize_becomes_one_call():
    expected = Integer.clone()
    stored = Epilogue(out_dtype="uint8", low=0, high=255)
    func = composites.linear("fc", stored, rows=3, inputs=2, outputs=2, in_dtype="uint8")
    expected.update_func(expected.get_global_var("linear_0"), func)
    tvm.ir.assert_structural_equal(LowerInteger()(Qdq), expected, map_free_vars=True)


@I.ir_module
class FewBits:
    @R.function
    def main(x: R.Tensor((1, 3, 2), "float32")) -> R.Tensor((1, 3, 2), "float32"):
        with R.dataflow():
            xc = R.clip(x, R.prim_value(-5.0), R.prim_value(2.5))
            xq = R.quantize(xc, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1, out_dtype="uint8")
            xdq = R.dequantize(xq, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1)
            weight = R.dequantize(
                R.const(WEIGHT),
                R.const(np.array([0.25, 0.125], np.float32)),
                R.const(np.zeros(2, np.int8)),
                axis=1,
            )
            fc = R.matmul(xdq, weight)
            biased = R.add(fc, R.const(np.array([3.0, -1.0], np.float32)))
            active = R.nn.relu(biased)
            limited = R.clip(active, R.prim_value(-7.0), R.prim_value(8.0))
            y = R.quantize(limited, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1, out_dtype="uint8")
            ydq = R.dequantize(y, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1)
            R.output(ydq)
        return ydq


@I.ir_module
class FewBitsInteger:
    @R.function(private=True)
    def linear_0(
        x: R.Tensor((3, 2), "uint8"),
        weight: R.Tensor((2, 2), "int8"),
        bias: R.Tensor((2,), "int32"),
        shift: R.Tensor((2,), "int32"),
    ) -> R.Tensor((3, 2), "uint8"):
        return x  # as above

    @R.function
    def main(x: R.Tensor((1, 3, 2), "float32")) -> R.Tensor((1, 3, 2), "float32"):
        cls = FewBitsInteger
        with R.dataflow():
            xc = R.clip(x, R.prim_value(-5.0), R.prim_value(2.5))
            xq = R.quantize(xc, R.const(0.5, "float32"), R.const(10, "uint8"), axis=-1, out_dtype="uint8")
            rows = R.reshape(xq, R.shape([3, 2]))
            fc = cls.linear_0(rows, R.const(WEIGHT), R.const(BIAS), R.const(SHIFT))
            dense = R.reshape(fc, R.shape([1, 3, 2]))
            real = R.dequantize(dense, R.const(1.0, "float32"), R.const(7, "uint8"), axis=-1)
            out: R.Tensor((1, 3, 2), "float32") = real
            R.output(out)
        return out


def test_limits_join_the_product_and_its_relu():
    expected = FewBitsInteger.clone()
    stored = Epilogue(out_dtype="uint8", low=7, high=15)  # from relu, and from 4 bits
    func = composites.linear("fc", stored, rows=3, inputs=2, outputs=2, in_dtype="uint8")
    expected.update_func(expected.get_global_var("linear_0"), func)
    lowered = LowerInteger()(FewBits)
    tvm.ir.assert_structural_equal(lowered, expected, map_free_vars=True)
    verify(lowered, "integer")


GRAPHS: dict[Callable[[], tvm.IRModule], list[tuple[str, str]]] = {
    qdq_graphs.mlp: [("layer_norm", "norm"), ("linear", "fc1"), ("linear", "fc2")],
    qdq_graphs.attention: [("linear", "q"), ("linear", "k"), ("linear", "v"), ("attention", "attn")],
    qdq_graphs.convolutions: [("conv2d", "conv"), *(("linear", f"up.phase{i}") for i in range(4))],
}


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_lowering_keeps_the_function_and_leaves_no_float_op(graph):
    qdq = graph()
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == GRAPHS[graph]
    verify(lowered, "integer")
    (before,), (after,) = (reference.run(mod, [random_input(qdq)]) for mod in (qdq, lowered))
    # The integer forms round once where the float graph rounds nothing, so a code may move by one.
    step = float(before.unique().diff().min())
    assert float((before - after).abs().max()) <= step
    assert float((before != after).float().mean()) < 0.1
    assert before.unique().numel() > 5


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_lowering_twice_is_lowering_once(graph):
    lowered = LowerInteger()(graph())
    tvm.ir.assert_structural_equal(LowerInteger()(lowered), lowered, map_free_vars=True)


def test_a_module_with_other_functions_is_refused_with_the_way_out():
    mod = Qdq.clone()
    mod["helper"] = Qdq["main"].with_attr("global_symbol", "helper")
    with pytest.raises(UnsupportedModelError, match=r"helper: .* inline it first"):
        LowerInteger()(mod)


def _qdq_linear(make: QdqBuilder, weight: relax.Expr, bias: relax.Expr) -> tvm.IRModule:
    x = float_input(2, 4)
    product = make.bind("fc", op.matmul(make.stored("x", x, NORMED), weight))
    return make.module([x], make.stored("fc", make.bind("fc.bias", op.add(product, bias)), HIDDEN))


def _dequantized(make: QdqBuilder, values: np.ndarray, scale: object, zero: object, axis: int = -1) -> object:
    params = (relax.const(np.asarray(v)) for v in (scale, zero))
    return make.bind("constant", op.dequantize(relax.const(values), *params, axis=axis))


def test_the_forms_of_other_toolkits_lower():
    """One scale for a whole weight, and a bias stored as int32 in units of the accumulator."""
    make = QdqBuilder()
    values = make.rng.integers(-127, 128, (4, 3)).astype(np.int8)
    weight = _dequantized(make, values, np.float32(0.01), np.int8(0))
    unit = np.full(3, 0.01 * NORMED.scale, np.float32)
    bias = _dequantized(make, np.array([900, -70, 5], np.int32), unit, np.zeros(3, np.int32))
    qdq = _qdq_linear(make, weight, bias)
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == [("linear", "fc")]
    (before,), (after,) = (reference.run(mod, [random_input(qdq)]) for mod in (qdq, lowered))
    assert float((before - after).abs().max()) <= HIDDEN.scale


@pytest.mark.parametrize(
    ("scale", "zero"),
    [
        ([0.5, 0.0, 0.5], [0, 0, 0]),  # a scale that is none
        ([0.5, 0.5, 0.5], [0, 1, 0]),  # weights that are not symmetric
    ],
)
def test_a_weight_without_integer_form_stays_float(scale, zero):
    make = QdqBuilder()
    values = make.rng.integers(-127, 128, (4, 3)).astype(np.int8)
    weight = _dequantized(make, values, np.array(scale, np.float32), np.array(zero, np.int8), axis=1)
    qdq = _qdq_linear(make, weight, make.constant(3))
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == []
    (before,), (after,) = (reference.run(mod, [random_input(qdq)]) for mod in (qdq, lowered))
    assert before.equal(after)


def test_a_scale_that_is_an_input_stays_as_it_is():
    make = QdqBuilder()
    x, scale = float_input(2, 4), relax.Var("s", relax.TensorType((), "float32"))
    zero = relax.const(0, "int8")
    quantized = make.bind("q", op.quantize(x, scale, zero, axis=-1, out_dtype="int8"))
    weight = make.bind("w", op.dequantize(relax.const(np.ones((4, 4), np.int8)), scale, zero, axis=-1))
    product = op.matmul(make.bind("dq", op.dequantize(quantized, scale, zero, axis=-1)), weight)
    qdq = make.module([x, scale], product)
    inputs = [random_input(qdq), reference.torch.tensor(0.25)]
    assert reference.run(LowerInteger()(qdq), inputs)[0].equal(reference.run(qdq, inputs)[0])


FEW = QuantParams(2.0**-3, 3, "uint8", (0, 15))


def codes(mod: tvm.IRModule, *inputs: reference.torch.Tensor) -> reference.torch.Tensor:
    """Return the last result in steps of FEW."""
    return reference.run(mod, list(inputs))[0] / FEW.scale + FEW.zero_point


def limited(make: QdqBuilder, name: str, value: relax.Var, params: QuantParams = FEW) -> relax.Var:
    return make.stored(name, make.bind(f"{name}.clip", op.clip(value, *params.real_limits)), params)


ENDS = {
    "the trunk's copy": lambda make, x: make.stored("x", x, QuantParams(2.0**-10, 0, "int16")),
    "the same storage": lambda make, x: make.stored("x", x, replace(FEW, limits=None)),
    "a table": lambda make, x: make.bind("gelu.0", op.nn.gelu(make.stored("x", x, HIDDEN))),
    "a norm": lambda make, x: make.layer_norm("norm", make.stored("x", x, qdq_graphs.TRUNK), 0.3),
    "a relu of the trunk": lambda make, x: make.bind(
        "relu.0", op.nn.relu(make.stored("x", x, QuantParams(2.0**-10, 0, "int16")))
    ),
    "a mean": lambda make, x: make.bind("mean.0", op.mean(make.stored("x", x, HIDDEN), [1], keepdims=True)),
}


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_in_few_bits_stays_within_their_limits(end):
    make, x = QdqBuilder(), float_input(1, 9, 8)
    qdq = make.module([x], limited(make, "few", ENDS[end](make, x)))
    lowered = LowerInteger()(qdq)
    verify(lowered, "integer")
    assert "nn.relu" not in [op_name(b.value) for b in bindings(lowered["main"])]
    values = 3 * random_input(qdq)
    found = codes(lowered, values)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 15
    assert float((found - codes(qdq, values)).abs().max()) <= 1


def test_floats_between_integers_become_few_bits_too():
    make, x = QdqBuilder(), float_input(1, 9, 8)
    between = make.bind("softmax.0", op.nn.softmax(make.stored("x", x, HIDDEN)))
    last = make.product("last", limited(make, "few", between), 8)
    lowered = LowerInteger()(make.module([x], make.stored("last", last, HIDDEN)))
    assert kernels(lowered) == [("linear", "last")]
    verify(lowered, "integer", float_sites=["softmax.0"])
    with pytest.raises(ValueError, match=r"softmax\.0: nn\.softmax computes in float"):
        verify(lowered, "integer")


def test_a_trunk_becomes_uint8_by_a_rounding_shift():
    make, x = QdqBuilder(), float_input(1, 4)
    wide = QuantParams(2.0**-10, 0, "int16")
    narrow = QuantParams(2.0**-3, 128, "uint8")
    qdq = make.module([x], make.stored("narrow", make.stored("x", x, wide), narrow))
    lowered = LowerInteger()(qdq)
    names = [str(b.value.op.name) for b in lowered["main"].body.blocks[0].bindings if hasattr(b.value, "op")]
    assert "relax.right_shift" in names
    ties = reference.torch.tensor([[0.0625, -0.0625, 0.1875, 40.0]])  # 1/2, -1/2, 3/2 steps; past the range
    assert reference.run(lowered, [ties])[0].tolist() == [[0.125, 0.0, 0.25, 127 / 8]]
