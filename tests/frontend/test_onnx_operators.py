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
