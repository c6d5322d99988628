"""The slow mode on the small transformer: units lose error, and weights stay in range."""

import pytest

from tests import tiny_transformer as tiny
from tests.quantize.test_sequential import BATCHES
from tvmq.quantize.adapt import Adapt
from tvmq.quantize.lockstep import Lockstep
from tvmq.quantize.sequential import Sequential
from tvmq.quantize.units import units


@pytest.fixture(scope="module")
def walked() -> tuple[Sequential, Adapt]:
    numbers, formats, main = tiny.quantization(), tiny.formats(), tiny.canonical()["main"]
    solved = Sequential(
        tiny.nodes(), formats, numbers.values, numbers.also_uint8, power_of_two=True, importance={}
    )
    stored, readers = formats.values.__contains__, formats.uint8_readers.__contains__
    lockstep = Lockstep(tiny.canonical(), tiny.nodes(), BATCHES, stored=stored, reads_copy=readers)
    lockstep.walk(solved)
    stretches = units(main, solved.weights.__contains__, lambda name: False, stored)
    adapt = Adapt(solved, stretches, reads_copy=readers, importance={}, images=frozenset(), steps=40, seed=0)
    lockstep.walk(adapt)
    return solved, adapt


def test_every_unit_is_trained(walked):
    _, adapt = walked
    assert len(adapt.losses) == 5
    assert all(after <= before for _, before, after in adapt.losses)
    assert sum(after < before for _, before, after in adapt.losses) >= 1


def test_only_values_change(walked):
    solved, adapt = walked
    assert set(adapt.weights) == set(solved.weights)
    for name, weight in adapt.weights.items():
        assert (weight.scale == solved.weights[name].scale).all()
        assert abs(weight.values.astype(int)).max() <= 127
