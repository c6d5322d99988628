from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tvmq import reference
from tvmq.frontend import import_model
from tvmq.passes.rebuild import bindings, op_name


def pad_model(
    pads: list[int], mode: str = "constant", value: float | None = None, opset: int = 17
) -> onnx.ModelProto:
    """Return a model that pads x [2, 3]."""
    shape = np.array([2, 3]) + np.array(pads[:2]) + np.array(pads[2:])
    tensors = [helper.make_tensor("pads", TensorProto.INT64, [4], pads)]
    inputs = ["x", "pads"]
    if value is not None:
        tensors.append(helper.make_tensor("value", TensorProto.FLOAT, [], [value]))
        inputs.append("value")
    graph = helper.make_graph(
        [helper.make_node("Pad", inputs, ["y"], mode=mode)],
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape.tolist())],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(("value", "opset"), [(None, 13), (-2.5, 17), (1.0, 18)])
def test_padding_with_constants_is_one_relax_operator(value: float | None, opset: int) -> None:
    model = pad_model([1, 0, 0, 2], value=value, opset=opset)
    mod = import_model(model)
    assert [op_name(b.value) for b in bindings(mod["main"]) if op_name(b.value)] == ["nn.pad"]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(reference.run(mod, [torch.from_numpy(x)])[0], wanted)


@pytest.mark.parametrize(("pads", "mode"), [([0, 1, 0, 1], "reflect"), ([-1, 0, 0, 0], "constant")])
def test_other_padding_is_left_to_tvm(pads: list[int], mode: str) -> None:
    mod = import_model(pad_model(pads, mode))
    assert "nn.pad" not in [op_name(b.value) for b in bindings(mod["main"])]


def clip_model(low: float | None, high: float | None, opset: int) -> onnx.ModelProto:
    """Return a model that clips x [7]."""
    bounds = {"min": low, "max": high}
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in bounds.items()
        if value is not None and opset > 6
    ]
    inputs = ["x", *(name if bounds[name] is not None else "" for name in bounds)] if opset > 6 else ["x"]
    attributes = {name: value for name, value in bounds.items() if value is not None} if opset <= 6 else {}
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Clip", inputs, ["y"], **attributes)], "clipped", info[:1], info[1:], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("low", "high", "opset", "name"),
    [
        (0.0, 6.0, 17, "clip"),  # what torch exports a ReLU6 to
        (0.0, 6.0, 6, "clip"),
        (0.0, None, 13, "nn.relu"),
        (-1.5, None, 17, "maximum"),
        (None, 2.0, 17, "minimum"),
    ],
)
def test_clips_between_constants_are_one_relax_operator(
    low: float | None, high: float | None, opset: int, name: str
) -> None:
    model = clip_model(low, high, opset)
    mod = import_model(model)
    assert [op_name(b.value) for b in bindings(mod["main"]) if op_name(b.value)] == [name]
    x = np.linspace(-3, 9, 7, dtype=np.float32)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(reference.run(mod, [torch.from_numpy(x)])[0], wanted)


def activation_model(
    op: str, opset: int, slope: list[int] | None = None, **attributes: float
) -> onnx.ModelProto:
    """Return a model that applies op to x [2, 3, 5], with slopes of a shape."""
    slopes = [] if slope is None else [onnx.numpy_helper.from_array(np.full(slope, 0.3, np.float32), "slope")]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 5]) for name in "xy"]
    node = helper.make_node(op, ["x", *(tensor.name for tensor in slopes)], ["y"], **attributes)
    graph = helper.make_graph([node], "activated", info[:1], info[1:], slopes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (activation_model("PRelu", 17, [1]), ["nn.leakyrelu"]),
        (activation_model("PRelu", 9, [1, 1, 1]), ["nn.leakyrelu"]),
        (activation_model("PRelu", 17, [3, 1]), ["greater", "multiply", "where"]),
        (activation_model("Celu", 12, alpha=0.5), None),
        (activation_model("Swish", 24), ["sigmoid", "multiply"]),
        (activation_model("Swish", 24, alpha=1.5), ["multiply", "sigmoid", "multiply"]),
    ],
)
def test_activations_that_tvm_lacks_are_what_onnx_says(
    model: onnx.ModelProto, names: list[str] | None
) -> None:
    mod = import_model(model)
    assert names in (None, [op_name(b.value) for b in bindings(mod["main"]) if op_name(b.value)])
    x = np.linspace(-9, 9, 30, dtype=np.float32).reshape(2, 3, 5)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(reference.run(mod, [torch.from_numpy(x)])[0], wanted, 1e-6, 1e-6)
