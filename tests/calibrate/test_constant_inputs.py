import numpy as np
import pytest
import torch

from tvmq.calibrate.constant_inputs import calmed, one_code
from tvmq.quantizer import quantized


def weight_and_inputs(seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 4))
    weight[2] = 500.0, -400.0, 0.1, 300.0
    inputs = rng.standard_normal((50, 6))
    inputs[:, 2] = 0.3 + 1e-4 * rng.standard_normal(50)
    return weight, inputs


def calm_of(weight, inputs):
    return calmed(weight, one_code(inputs.min(0), inputs.max(0), step=0.02))


def test_an_input_of_one_code_does_not_set_the_step():
    weight, inputs = weight_and_inputs()
    calm = calm_of(weight, inputs)
    others = np.abs(np.delete(weight, 2, 0)).max(0)
    np.testing.assert_array_equal(np.abs(calm).max(0), others)
    assert calm[2, 2] == 0.1  # no larger than the others: as it was
    np.testing.assert_array_equal(np.delete(calm, 2, 0), np.delete(weight, 2, 0))


@pytest.mark.parametrize("column", ["always zero", "two codes", "all of one code"])
def test_other_inputs_keep_their_weights(column):
    weight, inputs = weight_and_inputs()
    if column == "always zero":
        inputs[:, 2] = 0
    elif column == "two codes":
        inputs[7, 2] = 0.32
    else:
        inputs[:] = 0.3
    np.testing.assert_array_equal(calm_of(weight, inputs), weight)


@pytest.mark.parametrize("preset", ["fast", "default"])
def test_a_feature_without_gamma_does_not_set_the_step(preset):
    torch.manual_seed(0)
    norm, head = torch.nn.LayerNorm(16), torch.nn.Linear(16, 3)
    model = torch.nn.Sequential(norm, head).eval().requires_grad_(False)
    norm.weight[5], norm.bias[5] = 1e-9, -1e-7
    head.weight[:, 5] = torch.tensor([700.0, -900.0, 400.0])
    data = [(torch.randn(1, 8, 16),) for _ in range(16)]
    found = quantized(model, data[0], data, preset=preset)
    [weight], [bias] = found.numbers.weights.values(), found.numbers.biases.values()
    ordinary = head.weight[:, torch.arange(16) != 5].abs().max()
    assert weight.scale.max() < 2 * float(ordinary) / 127
    [call] = [node.call for node in found.nodes.by_name.values() if node.kind == "layer_norm"]
    gamma, beta = (torch.from_numpy(arg.value.numpy()) for arg in call.args[1:3])  # balanced
    x = torch.cat([inputs[0] for inputs in data])
    real, wanted = torch.from_numpy(weight.values * weight.scale), head(norm(x))
    made = torch.nn.functional.layer_norm(x, (16,), gamma, beta) @ real + torch.from_numpy(bias)
    assert float((made - wanted).square().mean()) < 1e-2 * float(wanted.var((0, 1)).mean())
