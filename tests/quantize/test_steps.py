"""Refined steps never leave more weighted error than those of statistics."""

import numpy as np
import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq.formats import QuantParams
from tvmq.plan.formats import value_formats
from tvmq.quantize.choose import ranges
from tvmq.quantize.lockstep import Lockstep, rounded
from tvmq.quantize.readers import Readers
from tvmq.quantize.steps import Steps
from tvmq.spec import Precision

BATCHES = [(torch.from_numpy(x),) for x in tiny.inputs(8)]


class Watched(Steps):
    """Keeps what it is shown."""

    def store(self, name, exact, quantized):
        self.__dict__.setdefault("shown", {})[name] = quantized.clone()
        return super().store(name, exact, quantized)


@pytest.fixture(scope="module")
def found() -> Watched:
    numbers, formats = tiny.quantization(), tiny.formats()
    readers = Readers(tiny.nodes(), formats, frozenset())
    steps = Watched(formats, readers, numbers.values, numbers.also_uint8)
    stored, readers = formats.values.__contains__, formats.uint8_readers.__contains__
    Lockstep(tiny.canonical(), tiny.nodes(), BATCHES, stored=stored, reads_copy=readers).walk(steps)
    return steps


def test_weighted_error_is_never_larger(found):
    before = tiny.quantization().values
    moved = [name for name in before if found.values[name] != before[name]]
    assert {"blocks.0.norm1", "gelu.1"} <= set(moved)
    for name in ("blocks.0.norm1", "blocks.1.norm2", "gelu.0", "gelu.1"):
        rows = found.shown[name].reshape(-1, found.shown[name].shape[-1])
        readers = [tiny.nodes().by_name[user] for user in tiny.nodes().consumers[name]]
        energy = sum(torch.from_numpy(r.call.args[1].value.numpy()).square().sum(1) for r in readers)
        errors = [
            float(((rounded(rows, params) - rows).square().sum(0) * energy).sum())
            for params in (before[name], found.values[name])
        ]
        assert errors[1] <= errors[0]


def test_a_tables_input_is_judged_by_the_tables_result(found):
    before = tiny.quantization().values
    name = next(n for n, fmt in tiny.formats().values.items() if fmt.unary == "gelu")
    fc2 = tiny.nodes().by_name["blocks.0.fc2"]
    energy = torch.from_numpy(fc2.call.args[1].value.numpy()).square().sum(1)
    rows = found.shown[name].reshape(-1, len(energy))
    gelu = torch.nn.functional.gelu
    errors = [
        float(((gelu(rounded(rows, params)) - gelu(rows)).square().sum(0) * energy).sum())
        for params in (before[name], found.values[name])
    ]
    assert errors[1] <= errors[0]


def test_limits_and_ties_of_storage_stay(found):
    before = tiny.quantization()
    for name, params in found.values.items():
        assert (params.dtype, params.limits) == (before.values[name].dtype, before.values[name].limits)
        if params.dtype != "uint8":
            assert params == before.values[name]
    for name, params in found.copies.items():
        ratio = np.log2(params.scale / found.values[name].scale)
        assert ratio == round(ratio) >= 0


def test_few_bits_take_codes_where_they_leave_less_error():
    plan = dict.fromkeys(tiny.nodes().by_name, Precision(8, 4))
    formats = value_formats(tiny.nodes(), lambda name: True, plan)
    numbers = ranges(tiny.nodes(), formats, tiny.calibration())
    steps = Watched(formats, Readers(tiny.nodes(), formats, frozenset()), numbers.values, numbers.also_uint8)
    stored, reads = formats.values.__contains__, formats.uint8_readers.__contains__
    Lockstep(tiny.canonical(), tiny.nodes(), BATCHES, stored=stored, reads_copy=reads).walk(steps)
    coded = {name for name, params in steps.values.items() if params.codes is not None}
    assert {"gelu.0", "gelu.1"} <= coded
    for name in coded:
        shown = steps.shown[name]
        assert formats.values[name].bits == 4
        assert len(rounded(shown, steps.values[name]).unique()) <= 16
        readers = [tiny.nodes().by_name[user] for user in tiny.nodes().consumers[name]]
        energy = sum(torch.from_numpy(r.call.args[1].value.numpy()).square().sum(1) for r in readers)
        errors = [
            float(((rounded(shown, params) - shown).square() * energy).sum())
            for params in (numbers.values[name], steps.values[name])
        ]
        assert errors[1] < errors[0]


class TwoHeads(torch.nn.Module):
    """A map that a convolution and, flattened, a linear read: its rows have other channels for each."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3)
        self.fc = torch.nn.Linear(16 * 36, 4)

    def forward(self, x):
        h = self.stem(x).relu()
        return self.conv(h), self.fc(h.flatten(1))


def test_a_map_may_be_read_flattened_too():
    samples = [torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    found = tiny.compiled(TwoHeads().eval(), example_inputs=(samples[0],), calibration=samples)
    assert found.verify().ok


def test_few_bits_keep_their_limits():
    params = QuantParams(0.1, 3, "uint8", (0, 15))
    assert rounded(torch.tensor([-9.0, 9.0]), params).tolist() == pytest.approx([-0.3, 1.2])
