"""ONNX models import with their modules' names and compute the same."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tvmq import reference
from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.frontend import import_model

RNG = np.random.default_rng(0)


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(dtype), name)


def model(nodes, weights, inputs, *, opset=17, domains=(), **extra):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", values, [output], weights)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **extra)


def two_linears(dims=("batch", 4)):
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["h"], "/blocks.0/mlp/fc1/MatMul"),
        helper.make_node("Add", ["blocks.0.mlp.fc1.bias", "h"], ["hb"], "/blocks.0/mlp/fc1/Add"),
        helper.make_node("Relu", ["hb"], ["r"], "/blocks.0/act/Relu"),
        helper.make_node("MatMul", ["r", "onnx::MatMul_2"], ["y"], "/head/MatMul"),
    ]
    weights = [
        weight("onnx::MatMul_1", 4, 8),
        weight("blocks.0.mlp.fc1.bias", 8),
        weight("onnx::MatMul_2", 8, 2),
    ]
    return model(nodes, weights, {"x": dims})


def sites(mod):
    names = [binding.var.name for binding in mod["main"].body.blocks[0].bindings]
    assert len(set(names)) == len(names)
    return [name for name in names if not name.startswith("lv")]


def assert_same(mod, source, *inputs):
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    got = reference.run(mod, [torch.from_numpy(array) for array in inputs])
    for ours, theirs in zip(got, session.run(None, feeds), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4, rtol=0)


def test_anonymous_weights_are_named_after_their_bias_or_their_node():
    source = two_linears()
    mod = import_model(source)
    assert sites(mod)[:2] == ["blocks.0.mlp.fc1", "head"]
    assert [(p.name, [int(s) for s in p.ty.shape]) for p in mod["main"].params] == [("x", [1, 4])]
    assert_same(mod, source.SerializeToString(), np.ones((1, 4), np.float32))


def test_the_name_beside_the_bias_wins_over_the_node():
    source = two_linears()
    source.graph.node[0].name = "/renamed/MatMul"
    assert sites(import_model(source))[0] == "blocks.0.mlp.fc1"


@pytest.mark.parametrize("example", [(np.ones((3, 4)),), [np.ones((3, 4))], {"x": np.ones((3, 4))}])
def test_example_inputs_fix_the_batch(example):
    assert [int(size) for size in import_model(two_linears(), example)["main"].params[0].ty.shape] == [3, 4]


def test_weights_listed_as_inputs_stay_weights():
    source = two_linears((1, 4))
    source.graph.input.append(helper.make_tensor_value_info("onnx::MatMul_1", TensorProto.FLOAT, [4, 8]))
    assert [param.name for param in import_model(source)["main"].params] == ["x"]


@pytest.mark.parametrize(
    ("dims", "example", "message"),
    [
        (
            ("batch", "tokens"),
            None,
            r"input 'x': dimension 1 of \[1?.*None\] is free, tvmq compiles one shape",
        ),
        (None, None, r"input 'x': its rank is open, tvmq compiles one shape; give example_inputs"),
        ((1, 4), (np.ones((2, 4)),), r"'x' is \[2, 4\], the model takes \[1, 4\]; give that shape"),
        ((1, 4), (np.ones(4),) * 2, r"do not fit the model, whose inputs are \['x'\]"),
        ((1, 4), {"z": np.ones(4)}, r"do not fit the model, whose inputs are \['x'\]"),
    ],
)
def test_shapes_that_cannot_be_fixed_get_a_sentence(dims, example, message):
    with pytest.raises(UsageError, match=message):
        import_model(two_linears(dims), example)


def test_every_unknown_operator_is_listed_with_its_node():
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["a"], "/text/StringNormalizer"),
        helper.make_node("Add", ["a", "x"], ["y"], "/custom/Add", domain="my.ops"),
    ]
    with pytest.raises(UnsupportedModelError) as caught:
        import_model(model(nodes, [], {"x": [1]}, domains=["my.ops"]))
    assert "StringNormalizer (in /text/StringNormalizer), my.ops::Add (in /custom/Add)" in str(caught.value)


def test_an_importer_that_stops_is_quoted(capsys):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "i"], ["y"]),
    ]
    with pytest.raises(UnsupportedModelError, match="TVM's ONNX importer stopped at: "):
        import_model(model(nodes, [], {"x": [2, 2]}))
    assert capsys.readouterr().out == ""


def test_weights_are_checked():
    source = two_linears()
    values = numpy_helper.to_array(source.graph.initializer[1]).copy()
    values[3] = np.inf
    source.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "blocks.0.mlp.fc1.bias"))
    with pytest.raises(UsageError, match=r"blocks\.0\.mlp\.fc1\.bias: holds 0 NaN and 1 infinite of 8"):
        import_model(source)
    half = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight("w", 4, 4, dtype="f2")], {"x": [4]})
    with pytest.raises(UsageError, match="w: is float16, tvmq starts from float32; export the model"):
        import_model(half)


def test_an_unsound_graph_gets_a_sentence():
    source = two_linears()
    source.graph.node[1].input[1] = "lost"
    with pytest.raises(UsageError, match=r"net: node '/blocks.0/mlp/fc1/Add' reads 'lost', which nothing"):
        import_model(source)


def test_local_functions_are_inlined():
    body = helper.make_function(
        "local",
        "Double",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [helper.make_node("Double", ["x"], ["y"], domain="local")]
    source = model(nodes, [], {"x": [2]}, domains=["local"], functions=[body])
    assert_same(import_model(source), source.SerializeToString(), np.ones(2, np.float32))


@pytest.mark.slow
def test_pretrained_vit_imports_and_agrees(vit_s_path):
    mod = import_model(vit_s_path)
    names = sites(mod)
    parts = ("norm1", "attention.attention.query", "attention.output.dense", "norm2", "mlp.fc1", "mlp.fc2")
    assert {f"backbone.encoder.layer.{i}.{part}" for i in range(12) for part in parts} <= set(names)
    assert {"backbone.embeddings.patch_embeddings.projection", "backbone.layernorm"} <= set(names)
    assert_same(mod, str(vit_s_path), RNG.standard_normal((1, 3, 224, 224)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_exported_by_torch_imports(tmp_path):
    net = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 8), torch.nn.GELU()).eval()
    torch.onnx.export(net, (torch.ones(1, 4),), tmp_path / "net.onnx", dynamo=False)
    mod = import_model(tmp_path / "net.onnx")
    assert {"0", "1"} <= set(sites(mod))
    assert_same(mod, str(tmp_path / "net.onnx"), np.array([[1, 2, 3, 4]], np.float32))
