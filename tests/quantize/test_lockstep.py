"""The quantized stream is what the qdq module computes, and each site sees both streams."""

import numpy as np
import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq import numerics, reference
from tvmq.formats import QuantParams
from tvmq.quantize.lockstep import Lockstep, batched, evenly, last_uses, rounded, samples_within

BATCHES = [(torch.from_numpy(x),) for x in tiny.inputs(3)]


class Recorder:
    """Gives the numbers of the qdq module and keeps what it is shown."""

    def __init__(self):
        self.numbers = tiny.quantization()
        self.stored, self.inputs = {}, {}

    def before(self, var, streams):
        pass

    def store(self, name, exact, quantized):
        self.stored[name] = (exact, quantized.clone())
        copy = self.numbers.also_uint8.get(name)
        return (self.numbers.values[name],) if copy is None else (self.numbers.values[name], copy)

    def weight(self, node, exact, quantized):
        self.inputs[node.name] = (exact, quantized)
        weight = self.numbers.weights[node.name]
        return torch.from_numpy(weight.values * weight.scale)

    def bias(self, node, exact, quantized):
        return torch.from_numpy(self.numbers.biases[node.name])


@pytest.fixture(scope="module")
def seen():
    recorder = Recorder()
    formats = tiny.formats()
    lockstep = Lockstep(
        tiny.canonical(),
        tiny.nodes(),
        BATCHES,
        stored=formats.values.__contains__,
        reads_copy=formats.uint8_readers.__contains__,
    )
    lockstep.walk(recorder)
    return recorder


def test_codes_are_rounded_to_as_the_tables_of_integers_do():
    params = QuantParams(0.1, 20, "uint8", (3, 200), (3, 19, 20, 22, 60, 200))
    values = torch.linspace(-4, 30, 5001)
    found = rounded(values, params)
    steps = np.clip(np.floor(values.numpy() / np.float32(0.1) + 0.5) + 20, 3, 200)
    codes = numerics.nearest_codes(params.codes)[steps.astype(int)].astype(np.float32)
    np.testing.assert_allclose(found.numpy(), (codes - 20) * np.float32(0.1), rtol=1e-6)


def test_quantized_stream_is_the_qdq_module(seen):
    found = {}
    reference.run(tiny.qdq_module(), BATCHES[1], observe=lambda name, value: found.setdefault(name, value))
    assert sorted(seen.stored) == sorted(seen.numbers.values)
    for name, (_, quantized) in seen.stored.items():
        # A sum in another order may fall on the other side of a step now and then.
        error = (quantized[1] - found[name]).square().sum() / found[name].square().sum()
        assert error < 1e-5, name


def test_exact_stream_is_the_float_module(seen):
    found = {}
    reference.run(tiny.canonical(), BATCHES[2], observe=lambda name, value: found.setdefault(name, value))
    for name, (exact, _) in seen.stored.items():
        torch.testing.assert_close(exact[2], found[name])


def test_a_site_sees_its_inputs_as_they_are_stored(seen):
    params = seen.numbers.values["blocks.0.norm2"]
    exact, quantized = seen.inputs["blocks.0.fc1"]
    steps = quantized[0].numpy() / params.scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert not torch.equal(exact[0], quantized[0])


def test_values_are_forgotten_after_their_last_use():
    main = tiny.canonical()["main"]
    gone = [var.name for names in last_uses(main).values() for var in names]
    assert len(gone) == len(set(gone))
    assert "head.bias" not in gone  # the result
    assert {"blocks.0.norm1", "gelu.0", "gelu.1"} <= set(gone)


def test_more_memory_holds_more_samples():
    main = tiny.canonical()["main"]
    few, many = samples_within(main, 10**6), samples_within(main, 10**8)
    assert 1 <= few < many
    assert many == pytest.approx(100 * few, rel=0.05)


def test_what_torch_cannot_batch_is_computed_one_by_one():
    def one(x, pair):
        return x + float(pair[0].sum()), (pair[1],)  # float() of a batched tensor is refused

    x, first, second = torch.arange(3.0), torch.arange(6.0).reshape(3, 2), torch.ones(3)
    total, (same,) = batched(one, [x, (first, second)])
    assert total.tolist() == [1.0, 6.0, 11.0]
    assert torch.equal(same, second)


def test_few_samples_are_taken_from_all_over():
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly(range(3), 8) == [0, 1, 2]
