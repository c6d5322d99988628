"""The visitor that solves weights, on the small transformer."""

import numpy as np
import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq.quantize.lockstep import Lockstep
from tvmq.quantize.sequential import Sequential, _channel_means

BATCHES = [(torch.from_numpy(x),) for x in tiny.inputs(12)]


class Watched(Sequential):
    """Keeps what additions of biases give, with the biases of the float model."""

    def bias(self, node, exact, quantized):
        own = super().bias(node, exact, quantized)
        self.__dict__.setdefault("sums", {})[node.name] = (exact, quantized)
        return own


@pytest.fixture(scope="module")
def solved() -> Watched:
    numbers, formats = tiny.quantization(), tiny.formats()
    visitor = Watched(
        tiny.nodes(), formats, numbers.values, numbers.also_uint8, power_of_two=True, importance={}
    )
    stored, readers = formats.values.__contains__, formats.uint8_readers.__contains__
    Lockstep(tiny.canonical(), tiny.nodes(), BATCHES, stored=stored, reads_copy=readers).walk(visitor)
    return visitor


def test_every_bias_takes_the_mean_error(solved):
    for name, (exact, quantized) in solved.sums.items():
        node = tiny.nodes().by_name[name]
        constant = node.call.args[1].value.numpy()
        left = (exact - quantized - torch.from_numpy(solved.biases[name] - constant)).mean((0, 1, 2))
        assert left.abs().max() < 1e-5 * exact.abs().max() + 1e-6, name


def test_every_site_is_solved_with_shifts(solved):
    sites = {name for name, node in tiny.nodes().by_name.items() if node.kind == "linear"}
    assert set(solved.weights) == set(solved.wanted) == sites
    numbers = tiny.quantization()
    ratio = numbers.values["blocks.0.norm2"].scale * solved.weights["blocks.0.fc1"].scale
    shifts = np.log2(ratio / numbers.values["blocks.0.fc1.bias"].scale)
    np.testing.assert_allclose(shifts, np.rint(shifts), atol=1e-5)


def test_weights_are_near_what_they_are_rounded_from(solved):
    for name, weight in solved.weights.items():
        real = weight.values * weight.scale
        error = np.abs(real - solved.wanted[name].numpy())
        assert np.median(error / weight.scale) <= 0.6


@pytest.mark.parametrize(("shape", "axis"), [((2, 1, 3, 4), -1), ((2, 1, 4, 3, 1), 1)])
def test_a_bias_takes_the_mean_of_the_rows_shown(shape, axis):
    value, shown = torch.randn(shape), torch.tensor([[1.0, 0, 0], [1.0, 0, 1]])
    rows = value.movedim(axis if axis < 0 else axis + 1, -1).reshape(6, 4)
    torch.testing.assert_close(_channel_means(value, axis, shown), rows[shown.ravel() > 0].mean(0))
    torch.testing.assert_close(_channel_means(value, axis, None), rows.mean(0))
