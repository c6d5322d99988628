"""The presets on the small transformer: each comes nearer to float, and leaves no mean error."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from tests import tiny_transformer as tiny
from tests.torch_threads import torch_threads
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.formats import Quantization
from tvmq.one_thread import one_thread
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.quantize.model import Model
from tvmq.quantize.presets import Preset, preset_of
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
    assert error("default") < 0.95 * error("fast")


def test_the_same_seed_gives_the_same_numbers():
    again = refined(model(), tiny.quantization(), preset_of("default"), power_of_two=True, seed=0)
    assert again.to_json() == numbers("default").to_json()


@pytest.mark.parametrize("preset", ["default", "best"])
def test_the_number_of_threads_changes_nothing(preset: str):
    found = []
    for threads in (1, 2):
        with torch_threads(threads), one_thread():
            found.append(
                refined(model(), tiny.quantization(), few(preset), power_of_two=True, seed=0).to_json()
            )
    assert found[0] == found[1]


def few(preset: str) -> Preset:
    """Return a preset that trains for a moment only."""
    own = preset_of(preset)
    return replace(own, adapt_steps=min(own.adapt_steps, 4))
