"""The joint search of steps never leaves more output error, and asks no more losses than allowed."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from tests import tiny_transformer as tiny
from tests.quantize.test_refine import error_of, model
from tvmq.quantize import joint
from tvmq.quantize.presets import preset_of
from tvmq.quantize.readers import Readers
from tvmq.quantize.refine import refined
from tvmq.quantize.steps import Steps


def test_steps_that_are_off_are_found():
    numbers = tiny.quantization()
    name = "blocks.1.norm2"
    off = {**numbers.values, name: replace(numbers.values[name], scale=numbers.values[name].scale * 1.9)}
    readers = Readers(tiny.nodes(), tiny.formats(), frozenset())
    steps = Steps(tiny.formats(), readers, off, numbers.also_uint8)
    asked: list[float] = []
    distance = joint._distance

    def counted(found: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> float:
        asked.append(distance(found, exact))
        return asked[-1]

    with patch.object(joint, "_distance", counted):
        found = joint.joint_steps(model(), readers, steps, evaluations=60)
    losses = np.array(asked).reshape(-1, joint.SAMPLES).sum(1)
    assert len(losses) <= 60
    assert losses.min() < 0.9 * losses[0]
    assert found[name].scale != off[name].scale
    assert {name for name in found if found[name] != off[name]} <= {
        name for name, own in off.items() if own.dtype == "uint8" and readers.alone(name)
    }


def test_it_is_an_option_of_a_preset():
    preset = replace(preset_of("default"), joint=20)
    found = refined(model(), tiny.quantization(), preset, power_of_two=True, seed=0)
    assert error_of(found) < error_of(tiny.quantization())
