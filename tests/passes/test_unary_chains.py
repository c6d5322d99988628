"""Chains of element-wise operators: where they begin and end, and that their function is the graph's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import NORMED, QdqBuilder, float_input
from tests.strategies import ModuleBuilder
from tvmq import numerics, reference
from tvmq.formats import QuantParams
from tvmq.passes import composites
from tvmq.passes.composite_body import KERNEL
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.unary_chains import Chains, chains_of

Var = Any
Formula = Callable[[ModuleBuilder, Var], Var]


def c(number: float):
    return relax.const(number, "float32")


def hard_swish(make: ModuleBuilder, x: Var) -> Var:
    moved = make.bind("moved", op.add(x, c(3)))
    return make.bind(
        "y", op.divide(make.bind("p", op.multiply(x, make.bind("g", op.clip(moved, 0, 6)))), c(6))
    )


def mish(make: ModuleBuilder, x: Var) -> Var:
    soft = make.bind("s", op.log(make.bind("o", op.add(make.bind("e", op.exp(x)), c(1)))))
    kept = make.bind("k", op.where(make.bind("b", op.greater(x, c(20))), x, soft))
    return make.bind("y", op.multiply(x, make.bind("t", op.tanh(kept))))


def elu(make: ModuleBuilder, x: Var) -> Var:
    below = make.bind("m", op.nn.relu(make.bind("d", op.subtract(c(1), make.bind("e", op.exp(x))))))
    return make.bind("y", op.add(make.bind("n", op.multiply(below, c(-1))), make.bind("r", op.nn.relu(x))))


def quick_gelu(make: ModuleBuilder, x: Var) -> Var:
    gate = make.bind("g", op.sigmoid(make.bind("m", op.multiply(x, c(1.702)))))
    return make.bind("y", op.multiply(gate, x))


def leaky_relu(make: ModuleBuilder, x: Var) -> Var:
    return make.bind("y", op.nn.leakyrelu(x, 0.2))


def thresholded_relu(make: ModuleBuilder, x: Var) -> Var:
    above = make.bind("f", op.astype(make.bind("b", op.greater(x, c(0.7))), "float32"))
    return make.bind("y", op.multiply(above, x))


def soft_shrink(make: ModuleBuilder, x: Var) -> Var:
    far = make.bind("f", op.greater(make.bind("a", op.abs(x)), c(0.5)))
    step = make.bind("h", op.multiply(make.bind("s", op.sign(x)), c(0.5)))
    moved = make.bind("m", op.subtract(x, step))
    return make.bind("y", op.where(far, moved, make.bind("z", op.zeros_like(x))))


def squared_relu(make: ModuleBuilder, x: Var) -> Var:
    return make.bind("y", op.power(make.bind("r", op.nn.relu(x)), c(2)))


def arithmetic(make: ModuleBuilder, x: Var) -> Var:
    root = make.bind("q", op.sqrt(make.bind("v", op.add(make.bind("s", op.square(x)), c(0.25)))))
    low = make.bind("l", op.minimum(make.bind("n", op.negative(root)), c(-0.75)))
    return make.bind("y", op.maximum(make.bind("i", op.multiply(low, make.bind("w", op.rsqrt(root)))), c(-2)))


FORMULAS = [
    *(hard_swish, mish, elu, quick_gelu, leaky_relu),
    *(thresholded_relu, soft_shrink, squared_relu, arithmetic),
]


def found(make: ModuleBuilder, params: list[Var], *results: Var) -> tuple[dict[str, str], set[str]]:
    """Return the source of each chain by its result, and what is inside of chains."""
    body = results[0] if len(results) == 1 else relax.Tuple(results)
    chains: Chains = chains_of(make.module(params, body)["main"])
    by_result = {str(var.name): str(chain.source.name) for var, chain in chains.by_result.items()}
    return by_result, {str(var.name) for var in chains.inside}


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_chain_is_the_function_that_the_graph_computes(formula: Formula):
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(4, 101)
    mod = make.module([x], formula(make, x))
    values = np.concatenate([np.linspace(-9, 9, 202), np.linspace(-90, 85, 202)]).reshape(4, 101)
    (chain,) = chains_of(mod["main"]).by_result.values()
    (wanted,) = reference.run(mod, [torch.from_numpy(values.astype(np.float32))])
    np.testing.assert_allclose(chain(values.astype(np.float32).astype(np.float64)), wanted, 2e-6, 1e-6)
    assert set(chain.names) == {str(b.var.name) for b in bindings(mod["main"])} - {"out"}


def test_where_the_function_has_no_value_it_is_zero():
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(3)
    mod = make.module([x], make.bind("y", op.log(x)))
    (chain,) = chains_of(mod["main"]).by_result.values()
    np.testing.assert_array_equal(chain(np.array([-1.0, 0.0, 1.0])), [0.0, -np.inf, 0.0])


def test_a_value_that_others_read_ends_one_chain_and_begins_the_next():
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(2, 4)
    first = make.bind("first", op.add(make.bind("inner", op.negative(x)), c(3)))
    second = make.bind("second", op.multiply(make.bind("more", op.exp(first)), c(2)))
    soft = make.bind("soft", op.nn.softmax(first))
    assert found(make, [x], second, soft) == ({"first": "x", "second": "first"}, {"inner", "more"})


def test_chains_may_share_what_only_they_read():
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(2, 4)
    shared = make.bind("shared", op.negative(x))
    a, b = make.bind("a", op.add(shared, c(1))), make.bind("b", op.add(shared, c(2)))
    assert found(make, [x], a, b) == ({"a": "x", "b": "x"}, {"shared"})


def test_a_product_of_two_values_is_no_chain_and_its_factors_are():
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(2, 4)
    other = relax.Var("other", relax.TensorType((2, 4), "float32"))
    gate = make.bind("gate", op.clip(make.bind("moved", op.add(other, c(3))), 0, 6))
    product = make.bind("product", op.multiply(make.bind("abs", op.abs(x)), gate))
    after = make.bind("after", op.negative(product))
    expected = {"gate": "other", "abs": "x", "after": "product"}
    assert found(make, [x, other], after) == (expected, {"moved"})


def test_what_is_no_function_of_one_float_value_is_no_chain():
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(2, 4)
    seen = relax.Var("seen", relax.TensorType((2, 4), "bool"))
    row = make.bind("row", op.strided_slice(x, axes=[0], begin=[0], end=[1]))
    values = [
        make.bind("broadcast", op.multiply(x, row)),
        make.bind("channels", op.multiply(x, make.constant(4))),
        make.bind("sum", op.add(x, x)),  # of the 16-bit trunk with itself
        make.bind("mask", op.where(seen, c(0), c(-1))),
        make.bind("truth", op.greater(x, c(0))),
        make.bind("relu", op.nn.relu(x)),  # has its own name
        make.bind("relu6", op.clip(x, 0, 6)),
    ]
    assert found(make, [x, seen], *values) == ({}, set())


@pytest.mark.parametrize(("outputs", "source"), [(1, "fc.bias"), (5, "fc.bias")])
def test_a_bias_belongs_to_its_product_however_many_channels(outputs: int, source: str):
    make, x = ModuleBuilder(np.random.default_rng(0)), float_input(2, 4)
    product = make.bind("fc", op.matmul(x, make.constant(4, outputs)))
    biased = make.bind("fc.bias", op.add(product, make.constant(outputs)))
    y = make.bind("y", op.abs(biased))
    assert found(make, [x], y) == ({"y": source}, set())


@pytest.mark.parametrize("formula", FORMULAS)
@given(
    scale=st.floats(0.002, 0.6),
    zero=st.integers(0, 255),
    out_scale=st.floats(0.004, 0.1),
    out_zero=st.integers(0, 255),
)
@example(
    scale=0.1, zero=0, out_scale=0.0625, out_zero=0
)  # 7 * 0.1 is 0.7 in float32, and above it in float64
@settings(max_examples=20, deadline=None)
def test_a_table_holds_the_float_chain_for_every_stored_value(
    formula: Formula, scale: float, zero: int, out_scale: float, out_zero: int
):
    params = QuantParams(float(np.float32(scale)), zero, "uint8")
    out = QuantParams(float(np.float32(out_scale)), out_zero, "uint8")
    make, x = QdqBuilder(), float_input(16, 16)
    stored = make.stored("x", x, params)
    lowered = LowerInteger()(make.module([x], make.stored("y", formula(make, stored), out)))
    (call,) = [b.value for b in bindings(lowered["main"]) if b.var.name == "y"]
    table = call.args[1].value.numpy()

    plain, y = ModuleBuilder(np.random.default_rng(0)), float_input(16, 16)
    graph = plain.module([y], formula(plain, y))
    real = (np.arange(256, dtype=np.float32).reshape(16, 16) - zero) * np.float32(scale)

    def steps(x: np.ndarray) -> np.ndarray:
        (y,) = reference.run(graph, [torch.from_numpy(x)])
        return np.clip(y.numpy().astype(np.float64).ravel() / out.scale, -1e6, 1e6) + out_zero

    wanted = steps(real)
    # Where the function jumps within the last bit of its float32 argument, float64 may see the other side.
    around = [steps(np.nextafter(real, np.float32(end))) for end in (-np.inf, np.inf)]
    smooth = np.max(np.abs(np.subtract(around, wanted)), axis=0) < 0.5
    close_to_tie = np.abs(wanted - np.floor(wanted) - 0.5) < 1e-3  # the reference rounds in float32
    expected = np.clip(np.floor(wanted + 0.5), 0, 255)
    sure = smooth & ~close_to_tie
    np.testing.assert_array_equal(table[sure], expected[sure])
    assert np.abs(table - expected)[smooth].max() <= 1
    assert (~smooth).sum() <= 2  # no formula jumps more often


def test_a_chain_of_stored_values_becomes_one_table():
    make, x = QdqBuilder(), float_input(3, 8)
    out = QuantParams(2.0**-5, 12, "uint8")
    after = LowerInteger()(
        make.module([x], make.stored("y", hard_swish(make, make.stored("x", x, NORMED)), out))
    )

    table = numerics.unary_table(
        lambda v: v * np.clip(v + 3, 0, 6) / 6, NORMED.scale, NORMED.zero_point, out.scale, out.zero_point
    )
    builder, x = relax.BlockBuilder(), float_input(3, 8)
    gvar = builder.add_func(composites.table("y", shape=(3, 8)), "table_0")
    with builder.function("main", [x]):
        with builder.dataflow():
            scale, zero = c(NORMED.scale), relax.const(NORMED.zero_point, "uint8")
            stored = builder.emit(op.quantize(x, scale, zero, axis=-1, out_dtype="uint8"))
            looked_up = builder.emit(relax.Call(gvar, [stored, relax.const(table)]))
            scale, zero = c(out.scale), relax.const(out.zero_point, "uint8")
            real = builder.emit(op.dequantize(looked_up, scale, zero, axis=-1))
            result = builder.emit_output(real)
        builder.emit_func_output(result)
    tvm.ir.assert_structural_equal(after, builder.get(), map_free_vars=True)
    assert [str(f.attrs[KERNEL]) for f in after.functions.values() if KERNEL in (f.attrs or {})] == ["table"]


def test_a_chain_joins_the_product_before_it():
    make, x = QdqBuilder(), float_input(3, 8)
    hidden = make.stored("fc", make.product("fc", make.stored("x", x, NORMED), 8, -8), NORMED)
    after = LowerInteger()(make.module([x], make.stored("y", hard_swish(make, hidden), NORMED)))
    assert [op_name(b.value) for b in bindings(after["main"])] == ["quantize", "", "dequantize", ""]


def test_two_chains_of_a_product_are_tables_beside_it():
    make, x = QdqBuilder(), float_input(3, 8)
    hidden = make.stored("fc", make.product("fc", make.stored("x", x, NORMED), 8, -8), NORMED)
    shared = make.bind("shared", op.add(hidden, c(1)))
    a = make.stored("a", make.bind("a", op.abs(shared)), NORMED)
    b = make.stored("b", make.bind("b", op.tanh(shared)), NORMED)
    after = LowerInteger()(make.module([x], make.bind("y", op.nn.softmax(make.bind("ab", op.add(a, b))))))
    kinds = [str(f.attrs[KERNEL]) for f in after.functions.values() if KERNEL in (f.attrs or {})]
    assert sorted(kinds) == ["linear", "table", "table"]


def test_a_chain_that_stays_float_keeps_its_bindings():
    make, x = QdqBuilder(), float_input(3, 8)
    y = hard_swish(make, make.stored("x", x, QuantParams(2.0**-9, 0, "int16")))
    after = LowerInteger()(make.module([x], make.stored("y", y, NORMED)))
    names = [str(b.var.name) for b in bindings(after["main"]) if op_name(b.value)]
    assert [name for name in names if name in ("moved", "g", "p", "y")] == ["moved", "g", "p", "y"]


def test_the_limits_of_a_quantize_are_part_of_no_chain():
    make, x = QdqBuilder(), float_input(2, 4)
    few = QuantParams(0.125, 3, "uint8", (0, 15))
    soft = make.bind("soft", op.nn.gelu(x))
    limited = make.stored("few", make.bind("few.clip", op.clip(soft, *few.real_limits)), few)
    other = make.bind("other", op.clip(make.bind("moved", op.negative(limited)), -0.3, 0.7))
    assert found(make, [x], make.stored("y", other, NORMED)) == ({"other": "few.dq"}, {"moved"})


def test_a_clip_at_whole_steps_of_its_result_is_a_table_still():
    make, x = QdqBuilder(), float_input(2, 4)
    hard_tanh = make.bind("hard", op.clip(make.stored("x", x, QuantParams(0.3, 9, "uint8")), -1, 1))
    lowered = LowerInteger()(make.module([x], make.stored("y", hard_tanh, QuantParams(0.125, 8, "uint8"))))
    kinds = [str(func.attrs[KERNEL]) for gvar, func in lowered.functions.items() if gvar.name_hint != "main"]
    assert kinds == ["table"]
