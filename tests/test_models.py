"""Models of every kind: compiled, verified, honest about what is integer, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tvmq

PRODUCTS = {"linear", "conv2d", "depthwise", "conv2d_transpose", "attention"}


def compiled(model: nn.Module, *shape: int) -> tuple[tvmq.CompiledModel, torch.Tensor]:
    """Compile a model of one image; return it with that image."""
    torch.manual_seed(1)
    x = torch.randn(*shape)
    return tvmq.compile(model, example_inputs=(x,), calibration=[x, torch.randn(*shape)]), x


def check_integer(model: tvmq.CompiledModel, *inputs: torch.Tensor) -> None:
    """Every site that coverage calls integer must be a kernel of the program, except where it joined one."""
    traced = {name.split(".phase")[0] for name in model.trace(*inputs)}
    claimed = {row.site for row in model.coverage.rows if row.integer and row.kind in PRODUCTS}
    assert claimed <= traced


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


class PositionalConvolution(nn.Module):
    """x + depthwise(x), then a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.depthwise(x))


SMALL = {
    "relu6 and depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1),
    ),
    "depthwise and residual": PositionalConvolution,
    "depthwise last": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)),
    "transposed last": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, stride=2)),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_convolutional_model_is_wholly_integer(name):
    torch.manual_seed(0)
    module = SMALL[name]().eval()
    model, x = compiled(module, 1, 3, 16, 16)
    assert all(row.integer for row in model.coverage.rows), model.coverage.rows
    check_integer(model, x)
    assert model.verify((x,)).require() is None
    with torch.no_grad():
        assert cosine(model(x), module(x)) > 0.998
