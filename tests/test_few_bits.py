"""Models of fewer than 8 bits, from the option to the bytes: exact, within limits, near the float model."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tests import tiny_transformer
from tvmq.formats import code_limits
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import Nodes, index
from tvmq.quantizer import canonical, formats_of
from tvmq.spec import COPY, W8A8, Precision


class Residual(nn.Module):
    """A stem, two blocks whose sum is read twice, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.depthwise, self.head = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.relu(x + self.d(nn.functional.silu(self.c(x))))
        return self.head(self.depthwise(x).mean((2, 3)))


@cache
def model(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return a model and four inputs."""
    if name == "transformer":
        return tiny_transformer.transformer(), tuple(map(torch.from_numpy, tiny_transformer.inputs()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Residual().eval(), tuple(torch.randn(4, 1, 3, 12, 10))


@cache
def compiled(name: str, bits: int | str) -> tvmq.CompiledModel:
    module, inputs = model(name)
    return tvmq.compile(
        module, example_inputs=inputs[:1], calibration=list(inputs), bits=bits, threads=1, strict=True
    )


def stored_by(nodes: Nodes, formats: Formats, site: str) -> str:
    """Return the value that a site's kernel stores: where a table joined it, the table's."""
    name = final(site.split(".phase")[0], swallowed(nodes, formats.integer))
    user = nodes.sole_consumer(name)
    joined = (
        user is not None and user.kind == "unary" and nodes.by_name[site].kind not in ("unary", "max_pool")
    )
    return user.name if joined else name


CLOSE = {"w4a8": 0.99, "w6a6": 0.99, "w4a4": 0.97}


@pytest.mark.parametrize("bits", ["w4a8", pytest.param("w6a6", marks=pytest.mark.slow), "w4a4"])
@pytest.mark.parametrize("name", ["transformer", "convolutions"])
def test_a_program_of_few_bits_is_exact_and_near_the_float_model(name: str, bits: str):
    module, inputs = model(name)
    program = compiled(name, bits)
    with torch.no_grad():
        wanted = torch.cat([module(x) for x in inputs])
    found = torch.cat([program(x) for x in inputs])
    assert all(program.verify((x,)).mismatches == () for x in inputs[:2])
    assert nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), 0) > CLOSE[bits]


@pytest.mark.slow
@pytest.mark.parametrize("bits", CLOSE)
@pytest.mark.parametrize("name", ["transformer", "convolutions"])
def test_every_traced_tensor_stays_within_its_limits(name: str, bits: str):
    module, inputs = model(name)
    program = compiled(name, bits)
    nodes = index(canonical(module, inputs[:1]))
    formats = formats_of(nodes, program.plan)
    asked = Precision.of(bits).activation_bits
    seen, traced = [], program.trace(inputs[0])
    coded = {scale.tensor for scale in program.manifest.description.scales if "codes" in scale.dtype}
    assert bool(coded) == (asked < 8)
    for site, codes in traced.items():
        if site.removesuffix(COPY) in nodes.by_name and codes.dtype.name in ("uint8", "int8"):
            value = stored_by(nodes, formats, site.removesuffix(COPY))
            width = formats.values[value].bits
            low, high = code_limits(codes.dtype.name, width)
            codes = traced.get(f"{value}.code", codes)
            if value in coded:
                assert len(np.unique(codes)) <= 2**width, site
            else:
                assert low <= codes.min() <= codes.max() <= high, site
            seen += [width] if len(np.unique(codes)) > width else []
    assert set(seen) <= {asked, 8}
    assert seen.count(asked) >= 4


def test_the_plan_the_scales_and_the_recipe_say_the_bits():
    program = compiled("transformer", "w4a6")
    description = program.manifest.description
    assert description.recipe["bits"] == "w4a6"
    named = {scale.tensor: scale.dtype for scale in description.scales}
    assert named["blocks.1.fc1"] == "int4"
    assert named["head"] == named["blocks.0.qkv.q"] == "int8"  # both ends
    assert (named["gelu.0"], named["blocks.0.qkv.k.bias"]) == ("uint8, 64 codes", "int6")
    precision = {site.site: site.precision for site in description.plan.sites}
    assert (precision["blocks.1.fc1"], precision["head"]) == (Precision(4, 6), W8A8)


@pytest.mark.parametrize("bits", [pytest.param("w3a8", marks=pytest.mark.slow), "w4a8"])
def test_weights_take_their_bits_in_the_file_and_in_memory(bits: str, tmp_path: Path):
    width = Precision.of(bits).weight_bits
    program = compiled("transformer", bits)
    program.save(tmp_path / "m.tvmq")
    weights = {c.site: c for c in tvmq.load(tmp_path / "m.tvmq").manifest.constants if c.weight_bits}
    planned = {site.site: site.precision for site in program.plan.sites if site.kind == "linear"}
    assert {site: Precision(c.weight_bits, 8) for site, c in weights.items()} == planned
    few = {site: c for site, c in weights.items() if planned[site] == Precision(width, 8)}
    assert len(few) > 4
    for weight in few.values():
        elements = math.prod(weight.logical_shape)
        assert (weight.weight_bits, 8 * math.prod(weight.shape)) == (width, width * elements)
        assert weight.stored_bytes == math.prod(weight.shape)
    assert tvmq.load(tmp_path / "m.tvmq").verify().ok


def test_eight_bits_by_any_name_are_the_same_bytes(tmp_path: Path):
    torch.manual_seed(0)
    linears = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    given = {"example_inputs": (torch.zeros(2, 8),), "calibration": list(torch.randn(2, 2, 8)), "threads": 1}
    for number, bits in enumerate([8, "8", "w8a8"]):
        tvmq.compile(linears, bits=bits, **given).save(tmp_path / f"{number}.tvmq")
    first, *others = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert all(other == first for other in others)
