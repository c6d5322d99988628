"""Steps chosen on outputs are never worse on them, by the measure that chose them."""

import numpy as np
import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq.calibrate.metrics import attention_maps
from tvmq.formats import Quantization
from tvmq.one_thread import one_thread
from tvmq.quantize.importance import squared_gradients
from tvmq.quantize.lockstep import Lockstep, rounded
from tvmq.quantize.output_steps import CRITERIA, OutputSteps
from tvmq.quantize.readers import Readers

BATCHES = [(torch.from_numpy(x),) for x in tiny.inputs(8)]
SITES = {name: node for name, node in tiny.nodes().by_name.items() if node.kind == "linear"}


@one_thread()
def walked(criterion: str, numbers: Quantization) -> OutputSteps:
    formats = tiny.formats()
    gradients = squared_gradients(tiny.canonical(), SITES, BATCHES, 0) if criterion == "fisher" else {}
    steps = OutputSteps(
        tiny.nodes(),
        formats,
        Readers(tiny.nodes(), formats, frozenset()),
        numbers.values,
        numbers.also_uint8,
        CRITERIA[criterion],
        gradients,
    )
    stored, readers = formats.values.__contains__, formats.uint8_readers.__contains__
    Lockstep(tiny.canonical(), tiny.nodes(), BATCHES, stored=stored, reads_copy=readers).walk(steps)
    return steps


@pytest.mark.parametrize("criterion", CRITERIA)
def test_steps_move_and_ties_stay(criterion: str):
    before = tiny.quantization()
    found = walked(criterion, before)
    moved = [name for name, own in found.values.items() if own != before.values[name]]
    assert "blocks.0.norm2" in moved
    for name in moved:
        assert found.values[name].zero_point == before.values[name].zero_point
        assert 0.25 <= found.values[name].scale / before.values[name].scale <= 4
    for name, own in found.copies.items():
        turns = np.log2(own.scale / found.values[name].scale)
        assert turns == round(turns) >= 0


def test_a_step_ten_times_too_coarse_becomes_finer():
    numbers = tiny.quantization()
    name = "blocks.0.norm1"
    coarse = {**numbers.values, name: type(numbers.values[name])(0.5, 128, "uint8")}
    found = walked("cosine", Quantization(coarse, numbers.also_uint8, {}, {}, {}, frozenset()))
    assert found.values[name].scale < 0.2


def test_attention_maps_choose_the_steps_of_q_and_k_and_keep_their_product():
    before = tiny.quantization()
    found = walked("similarity", before)
    nodes, formats = tiny.nodes(), tiny.formats()
    attention = next(node for node in nodes.by_name.values() if node.kind == "attention")
    q, k = (formats.source(nodes, name) for name in attention.inputs[:2])
    product = found.values[q].scale * found.values[k].scale
    assert product == pytest.approx(before.values[q].scale * before.values[k].scale, rel=1e-5)
    assert found.values[q].scale != before.values[q].scale
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    exact = attention_maps(x, x, 0.3)
    assert (attention_maps(rounded(x, found.values[q]), x, 0.3) - exact).abs().max() < 0.1
