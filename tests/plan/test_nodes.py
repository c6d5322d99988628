import numpy as np
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer
from tests.strategies import ModuleBuilder
from tvmq.plan.nodes import OUTPUT, index


def test_a_transformer_is_made_of_sites_biases_views_and_adds():
    nodes = tiny_transformer.nodes()
    found = {name: node.kind for name, node in nodes.by_name.items() if name.startswith("blocks.0")}
    assert found["blocks.0.norm1"] == "layer_norm"
    assert found["blocks.0.qkv.q"] == "linear"
    assert found["blocks.0.qkv.q.bias"] == "bias"
    assert found["blocks.0"] == "attention"
    assert {node.kind for node in nodes.by_name.values()} <= {
        "layer_norm", "linear", "bias", "attention", "unary", "add", "view"
    }  # fmt: skip
    assert nodes.by_name["blocks.0.fc2"].inputs == ("gelu.0",)
    assert nodes.parameters == ("x",)
    assert nodes.consumers["head.bias"] == (OUTPUT,)


def test_what_is_added_to_scores_is_no_value_of_attention():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 2, 4), "float32"))
    seen = relax.Var("seen", relax.TensorType((1, 1, 1, 3), "bool"))
    bias = relax.Var("bias", relax.TensorType((1, 1, 1, 3), "float32"))
    mask = make.bind("mask", op.where(seen, relax.const(np.float32(0)), relax.const(np.float32(-1e9))))
    hidden = make.bind("hidden", op.nn.attention(x, x, x, mask))
    any_seen = make.bind("any", op.max(make.bind("int", op.astype(seen, "int8")), axis=[-1], keepdims=True))
    shown = make.bind("shown", op.astype(any_seen, "bool"))
    make.bind("rows", op.where(shown, hidden, relax.const(np.float32(0))))
    make.bind("other", op.where(shown, x, relax.const(np.float32(0))))
    make.bind("unknown", op.nn.attention(x, x, x, bias))
    nodes = index(make.module([x, seen, bias], hidden)).by_name
    assert (nodes["hidden"].kind, nodes["hidden"].inputs) == ("attention", ("x",) * 3)
    assert (nodes["rows"].kind, nodes["rows"].inputs) == ("view", ("hidden",))
    assert nodes["other"].kind == nodes["unknown"].kind == "other"


def test_rows_of_a_constant_table_are_an_embedding():
    make = ModuleBuilder(np.random.default_rng(0))
    ids = relax.Var("ids", relax.TensorType((3,), "int32"))
    make.bind("words", op.take(make.constant(5, 8), ids, axis=0, mode="fast"))
    make.bind("columns", op.take(make.constant(5, 8), ids, axis=1, mode="fast"))
    make.bind("few", op.take(make.constant(5), ids, axis=0, mode="fast"))
    nodes = index(make.module([ids], ids)).by_name
    assert [nodes[name].kind for name in ("words", "columns", "few")] == ["embedding", "other", "other"]


def test_only_one_consumer_counts_as_the_sole_one():
    nodes = tiny_transformer.nodes()
    assert nodes.sole_consumer("blocks.0.fc1").name == "blocks.0.fc1.bias"
    assert nodes.sole_consumer("x") is None  # norm1 and the residual add
    assert nodes.sole_consumer("head.bias") is None  # an output


def test_what_no_integer_function_computes_is_other():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 8), "float32"))
    make.bind("broadcast", op.add(x, make.bind("mean", op.variance(x, axis=[1], keepdims=True))))
    turned = make.bind("turned", op.permute_dims(x, [0, 2, 1]))
    make.bind("product", op.matmul(x, turned))
    make.bind("position", op.add(x, make.constant(1, 3, 8)))
    nodes = index(make.module([x], turned)).by_name
    assert [nodes[name].kind for name in ("broadcast", "product", "mean")] == ["other"] * 3
    assert nodes["position"].kind == "add"


def test_zeros_around_a_value_move_it_and_anything_else_does_not():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    make.bind("zeros", op.nn.pad(x, [0, 0, 1, 1]))
    make.bind("ones", op.nn.pad(x, [0, 0, 1, 1], pad_value=1.0))
    make.bind("mirrored", op.nn.pad(x, [0, 0, 1, 1], pad_mode="reflect"))
    nodes = index(make.module([x], x)).by_name
    assert [nodes[name].kind for name in ("zeros", "ones", "mirrored")] == ["view", "other", "other"]


def test_a_chain_is_one_node_named_by_its_result():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 8), "float32"))
    moved = make.bind("moved", op.add(x, relax.const(np.float32(3))))
    gate = make.bind("gate", op.clip(moved, 0, 6))
    swish = make.bind("swish", op.multiply(x, gate))
    nodes = index(make.module([x], swish))
    node = nodes.by_name["swish"]
    assert (node.kind, node.op, node.inputs) == ("unary", "table", ("x",))
    assert node.bindings == ("moved", "gate", "swish")
    assert {"moved", "gate"}.isdisjoint(nodes.by_name)
    assert nodes.consumers["x"] == ("swish",)
