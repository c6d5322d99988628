"""Readers are found through reshapes, and say how coarse a value may be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests import tiny_transformer as tiny
from tvmq.calibrate.collect import images
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.plan.formats import final, swallowed, value_formats
from tvmq.plan.nodes import index
from tvmq.quantize.readers import Readers
from tvmq.quantize.site_weights import input_params, matrix_of
from tvmq.quantize.weights import scale_candidates
from tvmq.spec import Precision

SITES = ("blocks.0.fc1", "blocks.0.fc2", "blocks.0.proj")


def test_tables_write_what_functions_norms_and_attention_make():
    integer = tiny.formats()
    readers = Readers(tiny.nodes(), integer, frozenset())
    found = {name for name in integer.values if readers.by_a_table(name)}
    norms = {f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)}
    assert found >= norms | {"gelu.0", "gelu.1"}
    kinds = {tiny.nodes().by_name[name].kind for name in found}
    assert kinds == {"unary", "layer_norm", "attention"}
    none = replace(integer, integer=frozenset())
    assert not any(Readers(tiny.nodes(), none, frozenset()).by_a_table(name) for name in found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("site", SITES)
def test_a_value_may_be_as_coarse_as_a_shift_reaches(site: str, bits: int):
    nodes = tiny.nodes()
    formats = value_formats(nodes, lambda name: True, dict.fromkeys(nodes.by_name, Precision(bits, 8)))
    readers = Readers(nodes, formats, frozenset())
    numbers = tiny.quantization()
    node = nodes.by_name[site]
    source, out = formats.source(nodes, node.inputs[0]), final(site, swallowed(nodes, formats.integer))
    answers = []
    for factor in np.exp2(np.arange(-8, 16)):
        tried = replace(numbers.values[source], scale=numbers.values[source].scale * float(factor))
        values = {**numbers.values, source: tried}
        x = input_params(nodes, node, values, numbers.also_uint8)
        ratio = values[out].scale / x.scale
        turns = np.log2(scale_candidates(matrix_of(node), ratio, 0.0, bits, gained=False)[0] / ratio)
        shifts = bool(np.allclose(turns, np.round(turns), atol=1e-6))
        answers.append(readers.by_a_shift(source, tried, numbers.values, numbers.also_uint8))
        assert answers[-1] == shifts
    assert {True, False} == set(answers)


class AsManyPixelsAsChannels(nn.Module):
    """A map of 16 channels and 16 pixels, read by a convolution and, as rows of pixels, by a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x).relu()
        return self.conv(x), self.fc(x.flatten(2))


def test_a_linear_over_pixels_is_not_taken_for_one_over_channels():
    example = (torch.randn(1, 3, 4, 4),)
    mod = canonicalize(import_model(AsManyPixelsAsChannels().eval(), example_inputs=example))
    nodes = index(mod)
    readers = Readers(nodes, value_formats(nodes, lambda name: True), images(mod))
    name = next(name for name, node in nodes.by_name.items() if node.op == "relu")
    assert {r.node.name: r.multiplies for r in readers.of(name)} == {"conv": True, "fc": False}
