import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.passes.windows import windowed
from tests.strategies import ModuleBuilder, transformer_block
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.linear_graph import LinearGraph


def test_reshapes_are_looked_through_both_ways():
    graph = LinearGraph(transformer_block()["main"])
    named = {var.name: var for var in graph.values}
    assert [var.name for var in graph.linears(named["merge"])] == ["attn.proj"]
    matmul, bias = graph.linear_before(named["reshape.k"])
    assert (matmul.name, bias.name) == ("attn.k", "attn.k.bias")
    assert graph.linear_before(named["merge"]) is None  # an attention made it
    assert graph.linears(named["attn.proj.bias"]) is None  # the residual addition reads it
    assert graph.only_reader(named["norm1"]) is None


def test_permutations_of_rows_are_looked_through_both_ways():
    graph = LinearGraph(canonicalize(windowed(shift=1))["main"])
    (mixed,) = (var for var in graph.values if graph.op(var) == "nn.attention_bias")
    found = [graph.linear_before(operand) for operand in graph.values[mixed].args[:3]]
    assert all(each is not None and each[1] is not None for each in found)
    assert len(graph.linears(graph.only_reader(mixed))) == 1


@pytest.mark.parametrize(
    ("split", "keeps"), [((1, 6, 2, 4), True), ((1, 3, 2, 8), False), ((1, 12, 2, 2), False)]
)
def test_heads_of_joined_or_cut_rows_are_no_channels_of_a_linear(split, keeps):
    make, x = ModuleBuilder(np.random.default_rng(0)), relax.Var("x", relax.TensorType((1, 6, 8), "float32"))
    heads = [make.bind(f"{name}.heads", op.reshape(make.linear(name, x, 8), split)) for name in "qkv"]
    graph = LinearGraph(make.module([x], make.bind("attn", op.nn.attention(*heads)))["main"])
    assert [graph.linear_before(each) is not None for each in heads] == [keeps] * 3


def test_a_take_of_some_rows_is_no_permutation():
    make, x = ModuleBuilder(np.random.default_rng(0)), relax.Var("x", relax.TensorType((1, 5, 8), "float32"))
    normed = make.layer_norm("norm", x, 0.0)
    first = make.bind("first", op.take(normed, relax.const(0, "int64"), axis=1))
    graph = LinearGraph(make.module([x], make.linear("head", first, 4))["main"])
    assert graph.linears(normed) is None
