"""The presets on the small transformer: each comes nearer to float, and leaves no mean error."""

from functools import cache

import torch

from tests import tiny_transformer as tiny
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.formats import Quantization
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.quantize.model import Model
from tvmq.quantize.presets import preset_of
from tvmq.quantize.refine import refined
from tvmq.reference import run

SAMPLES = 24


@cache
def model() -> Model:
    batches = list(as_batches(tiny.inputs(SAMPLES), input_specs(tiny.canonical())))
    return Model(tiny.canonical(), tiny.nodes(), tiny.formats(), batches)


@cache
def numbers(preset: str) -> Quantization:
    if preset == "fast":
        return tiny.quantization()
    return refined(model(), tiny.quantization(), preset_of(preset), power_of_two=True, seed=0)


def outputs(found: Quantization, batches) -> torch.Tensor:
    qdq = InsertQdq(found)(tiny.canonical())
    return torch.cat([run(qdq, batch)[0] for batch in batches])


def error(preset: str) -> float:
    return error_of(numbers(preset))


def error_of(found: Quantization) -> float:
    held_out = [(torch.from_numpy(x),) for x in tiny.inputs(64, seed=5)]
    exact = torch.cat([run(tiny.canonical(), batch)[0] for batch in held_out])
    return float((outputs(found, held_out) - exact).square().mean())


def test_solving_on_what_sites_see_comes_nearer_to_float():
    assert error("default") < 0.9 * error("fast")


def test_the_same_seed_gives_the_same_numbers():
    again = refined(model(), tiny.quantization(), preset_of("default"), power_of_two=True, seed=0)
    assert again.to_json() == numbers("default").to_json()
