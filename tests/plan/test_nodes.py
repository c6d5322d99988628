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


def test_only_one_consumer_counts_as_the_sole_one():
    nodes = tiny_transformer.nodes()
    assert nodes.sole_consumer("blocks.0.fc1").name == "blocks.0.fc1.bias"
    assert nodes.sole_consumer("x") is None  # norm1 and the residual add
    assert nodes.sole_consumer("head.bias") is None  # an output


def test_what_no_integer_function_computes_is_other():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 8), "float32"))
    scalar = make.bind("scalar", op.add(x, relax.const(np.float32(1))))
    make.bind("broadcast", op.add(scalar, make.bind("mean", op.mean(x, axis=[1], keepdims=True))))
    turned = make.bind("turned", op.permute_dims(x, [0, 2, 1]))
    make.bind("product", op.matmul(x, turned))
    make.bind("position", op.add(x, make.constant(1, 3, 8)))
    nodes = index(make.module([x], scalar)).by_name
    assert [nodes[name].kind for name in ("scalar", "broadcast", "product", "mean")] == ["other"] * 4
    assert nodes["position"].kind == "add"
