"""Activations that Relax has no operator for, from torch and from ONNX: integer, exact, near float."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

import tvmq
from tvmq.compiled import CompiledModel

CHANNELS = 8
SAMPLES = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 for i in range(9)]


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Net(nn.Module):
    """conv -> activation -> conv for each activation, side by side."""

    def __init__(self, *activations: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activations = nn.ModuleList(activations)
        self.before = nn.ModuleList(nn.Conv2d(3, CHANNELS, 3) for _ in activations)
        self.after = nn.ModuleList(nn.Conv2d(CHANNELS, 4, 1) for _ in activations)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        paths = zip(self.before, self.activations, self.after, strict=True)
        return tuple(after(activation(before(x))) for before, activation, after in paths)


TORCH = (
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(), nn.ELU(), nn.LeakyReLU(0.1), nn.SELU(), nn.CELU(0.5)),
    *(nn.Softplus(), nn.GELU(approximate="tanh"), nn.PReLU(), nn.Hardtanh(), nn.Softshrink(), QuickGelu()),
)
ONNX = {
    "HardSwish": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "Mish": {},
    "Elu": {"alpha": 0.8},
    "LeakyRelu": {"alpha": 0.1},
    "PRelu": {},
    "Softplus": {},
    "Selu": {},
    "Celu": {"alpha": 0.5},
    "ThresholdedRelu": {"alpha": 0.3},
    "Gelu": {"approximate": "tanh"},
    "Shrink": {"lambd": 0.5, "bias": 0.2},
}


def onnx_net() -> onnx.ModelProto:
    """Return the like of Net with ONNX's operators."""
    rng = np.random.default_rng(0)
    shapes = {"slope": (1,)}
    nodes, outputs = [], []
    for op, attributes in ONNX.items():
        shapes |= {f"{op}.w": (CHANNELS, 3, 3, 3), f"{op}.b": (CHANNELS,), f"{op}.w2": (4, CHANNELS, 1, 1)}
        inputs = [f"{op}.x", "slope"] if op == "PRelu" else [f"{op}.x"]
        nodes += [
            helper.make_node("Conv", ["x", f"{op}.w", f"{op}.b"], [f"{op}.x"]),
            helper.make_node(op, inputs, [f"{op}.y"], **attributes),
            helper.make_node("Conv", [f"{op}.y", f"{op}.w2"], [op]),
        ]
        outputs.append(helper.make_tensor_value_info(op, TensorProto.FLOAT, [1, 4, 6, 6]))
    values = {name: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SAMPLES[0].shape))
    graph = helper.make_graph(nodes, "net", [x], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def check(compiled: CompiledModel, wanted: list[torch.Tensor]) -> None:
    """Every site is integer, each activation part of the product before it, and the answers are right."""
    assert [row.site for row in compiled.coverage.rows if not row.integer] == []
    assert len(compiled.trace(SAMPLES[0])) == 2 * len(wanted)
    result = compiled.verify(SAMPLES[0])
    assert (result.ok, result.inexact) == (True, ())
    for got, one in zip(compiled(SAMPLES[0]), wanted, strict=True):
        assert F.cosine_similarity(got.flatten(), one.flatten(), 0) > 0.998


@pytest.mark.slow
def test_torch_activations_are_part_of_the_products_before_them():
    model = Net(*TORCH).eval()
    with torch.no_grad():
        wanted = list(model(SAMPLES[0]))
    check(tvmq.compile(model, example_inputs=(SAMPLES[0],), calibration=SAMPLES[1:]), wanted)


def test_onnx_activations_are_part_of_the_products_before_them():
    model = onnx_net()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = [torch.from_numpy(y) for y in session.run(None, {"x": SAMPLES[0].numpy()})]
    check(tvmq.compile(model, calibration=SAMPLES[1:]), wanted)


class Gated(nn.Module):
    """A squeeze-and-excite block, and a norm by the mean square: products of two values, and squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, 4, 1)
        self.less, self.more = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        x = x * F.hardsigmoid(self.more(F.relu(self.less(x.mean((2, 3), keepdim=True)))))
        y = self.head(x)
        return y * torch.rsqrt((y * y).mean(1, keepdim=True) + 1e-6)


def test_products_of_two_values_and_squares_stay_float():
    model = Gated().eval()
    compiled = tvmq.compile(model, example_inputs=(SAMPLES[0],), calibration=SAMPLES[1:])
    result = compiled.verify(SAMPLES[0])
    assert result.ok, result.mismatches
    left = {row.site: row.reason for row in compiled.coverage.rows if not row.integer}
    assert {row.kind for row in compiled.coverage.rows if row.integer} >= {"table", "conv2d", "mean"}
    assert [site.split(".")[0] for site in left].count("multiply") == 2
    assert any("too coarse" in reason for reason in left.values())
    with torch.no_grad():
        wanted = model(SAMPLES[0])
    assert F.cosine_similarity(compiled(SAMPLES[0]).flatten(), wanted.flatten(), 0) > 0.998


def test_an_activation_named_by_ignored_stays_float():
    model = Net(nn.Hardswish()).eval()
    compiled = tvmq.compile(model, example_inputs=(SAMPLES[0],), calibration=SAMPLES[1:], ignored=["table.0"])
    left = {row.site: row.reason for row in compiled.coverage.rows if not row.integer}
    assert left == {"table.0": "matches `ignored`"}
    assert compiled.verify(SAMPLES[0]).ok


def test_slopes_of_a_prelu_by_channel_stay_float():
    model = Net(nn.PReLU(CHANNELS)).eval()
    compiled = tvmq.compile(model, example_inputs=(SAMPLES[0],), calibration=SAMPLES[1:])
    assert compiled.verify(SAMPLES[0]).ok
    assert "where" in {row.kind for row in compiled.coverage.rows if not row.integer}
