"""Trained roundings are whole numbers in range, and leave less error than the nearest ones."""

import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq.formats import QuantParams
from tvmq.quantize.reconstruct import Rounding, Task, reconstruct, straight_through, token_weights
from tvmq.quantize.units import units
from tvmq.reference import Interpreter

BATCHES = torch.stack([torch.from_numpy(x) for x in tiny.inputs(24)])


def mlp() -> tuple[Task, dict[str, Rounding]]:
    """Return the second branch of the transformer with 3-bit weights to train."""
    main = tiny.canonical()["main"]
    stored = tiny.formats().values.__contains__
    linear = {name for name, node in tiny.nodes().by_name.items() if node.kind == "linear"}
    unit = units(main, linear.__contains__, lambda name: False, stored)[1]
    interpreter = Interpreter(tiny.canonical())
    results = []
    for batch in BATCHES:
        env = {unit.source: batch}
        for step in unit.steps:
            env[step.var] = interpreter.evaluate(step.value, env)
        results.append(env[unit.results[-1]])
    target = torch.stack(results)
    roundings = {}
    for name in ("blocks.0.fc1", "blocks.0.fc2"):
        weight = torch.from_numpy(tiny.nodes().by_name[name].call.args[1].value.numpy().copy())
        roundings[name] = Rounding(weight, weight.abs().amax(0) / 3, (-3, 3))
    weights = (token_weights(target, image=False),)
    task = Task(unit, BATCHES, None, (), (target,), weights, {}, lambda name: False, {})
    return task, roundings


def test_less_error_than_by_rounding_to_nearest():
    task, roundings = mlp()
    start = {name: each.values() * each.scale for name, each in roundings.items()}
    nearest, trained = reconstruct(task, roundings, start, Interpreter(tiny.canonical()), steps=150, seed=0)
    assert trained < 0.7 * nearest
    for rounding in roundings.values():
        values = rounding.values()
        assert torch.equal(values, values.round())
        assert values.abs().max() <= 3
        assert ((values - rounding.wanted / rounding.scale).abs() <= 1.0 + 1e-4).all()


def test_the_same_seed_gives_the_same_roundings():
    found = []
    for _ in range(2):
        task, roundings = mlp()
        start = {name: each.values() * each.scale for name, each in roundings.items()}
        reconstruct(task, roundings, start, Interpreter(tiny.canonical()), steps=5, seed=7)
        found.append(roundings["blocks.0.fc1"].logits.detach())
    assert torch.equal(*found)


def test_gradients_pass_rounding_but_not_clipping():
    params = QuantParams(0.5, 2, "uint8", (0, 7))
    x = torch.tensor([-3.0, 0.2, 0.3, 9.0], requires_grad=True)
    found = straight_through(x, params, 0.0)
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 0.5, 2.5]))
    found.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_what_is_stored_in_some_codes_is_so_while_it_learns():
    params = QuantParams(0.5, 2, "uint8", (0, 9), (0, 3, 9))
    x = torch.tensor([-3.0, 0.2, 0.3, 2.3, 9.0], requires_grad=True)
    found = straight_through(x, params, 0.0)
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.5, 0.5, 3.5, 3.5]))
    found.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_a_share_is_left_unrounded():
    torch.manual_seed(0)
    x = torch.linspace(0.01, 0.24, 1000)
    found = straight_through(x, QuantParams(0.5, 0, "uint8"), 0.5)
    assert (found == x).float().mean() == pytest.approx(0.5, abs=0.05)
