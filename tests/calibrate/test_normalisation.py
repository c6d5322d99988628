"""Inputs scaled otherwise than in training are told from right ones, by batch norms or by what is usual."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tvmq.calibrate.batches import input_specs
from tvmq.calibrate.findings import Finding, Kind
from tvmq.calibrate.normalisation import norm_sizes, scaling_findings
from tvmq.frontend import import_model

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def pixels(count: int = 8, seed: int = 0) -> torch.Tensor:
    """Return smooth pictures [N, 3, 32, 32] in 0..1, as photos are."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(small, (32, 32), mode="bilinear") ** 1.2


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - MEAN) / STD


@cache
def trained(norm: bool) -> tvm.IRModule:
    """Return a convolution, with a batch norm that saw normalised pictures in training if wanted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, bias=False), *[nn.BatchNorm2d(16, momentum=None)] * norm, nn.ReLU()]
        model = nn.Sequential(*layers).train()
    with torch.no_grad():
        model(normalised(pixels(64, seed=1)))
    return import_model(model.eval(), (torch.zeros(1, 3, 32, 32),))


def findings(mod: tvm.IRModule, x: torch.Tensor, prepared: str = "") -> tuple[Finding, ...]:
    batches = [(sample[None],) for sample in x]
    return scaling_findings(mod, input_specs(mod), batches, prepared=prepared)


@pytest.mark.parametrize("norm", [True, False])
def test_inputs_as_in_training_raise_no_doubt(norm: bool):
    assert findings(trained(norm), normalised(pixels())) == ()
    assert findings(trained(norm), normalised(pixels(2))) == ()


@pytest.mark.parametrize(("scale", "factor"), [(255.0, 255 * 0.226), (1.0, 0.226)])
def test_the_first_batch_norm_tells_by_what_factor_inputs_are_off(scale: float, factor: float):
    (finding,) = findings(trained(True), scale * pixels(), "--mean 0,0,0 --std 1,1,1")
    assert finding.kind is Kind.NORMALISATION
    assert finding.numbers["factor"] == pytest.approx(factor, rel=0.3)
    assert "--mean 0,0,0" in finding.way_out


def test_the_factor_is_that_of_numpy():
    mod, x = trained(True), normalised(pixels())
    sizes = norm_sizes(mod, [(x,)])
    assert sizes is not None
    doubled = norm_sizes(mod, [(2 * x,)])
    assert doubled is not None
    np.testing.assert_allclose(doubled.octaves - sizes.octaves, 1, atol=1e-4)


@pytest.mark.parametrize(("scale", "said"), [(255.0, "0..255"), (1.0, "0..1")])
def test_bare_pixels_are_asked_about_where_the_model_tells_nothing(scale: float, said: str):
    x = scale * pixels()
    x[0, 0, 0, :2] = torch.tensor([0.0, scale])
    (finding,) = findings(trained(False), x)
    assert (finding.kind, said in finding.seen) == (Kind.NORMALISATION, True)
    assert findings(trained(False), x, prepared="--mean 0 --std 1") == ()


class OwnScaling(nn.Module):
    """Normalises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x - 127.0) / 128.0)


def test_models_that_scale_pixels_themselves_and_untrained_norms_raise_no_doubt():
    example = (torch.zeros(1, 3, 32, 32),)
    x = 255 * pixels()
    x[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    assert findings(import_model(OwnScaling().eval(), example), x) == ()
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert norm_sizes(import_model(fresh, example), [(x,)]) is None
