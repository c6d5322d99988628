import numpy as np
import pytest
import torch

from tests.strategies import BLOCK_INPUTS, transformer_block
from tvmq import reference
from tvmq.calibrate import balancing
from tvmq.calibrate.balancing import balance_factors
from tvmq.calibrate.collect import collect
from tvmq.errors import CalibrationError
from tvmq.passes.balance import Balance, find_groups


def data(samples=8):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 5, 8, generator=generator),) for _ in range(samples)]


def quantized_output_error(mod, batches):
    """Return the squared error of fc1's output once its input and weight are rounded as int8 sites are."""
    group = next(g for g in find_groups(mod) if g.site == "norm2")
    kept = []
    for batch in batches:
        reference.run(mod, batch, observe=lambda n, v: kept.append(v) if n == "norm2" else None)
    x, w = torch.cat(kept).double(), torch.from_numpy(group.weights[0]).double()
    scale = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
    w_scale = w.abs().amax(0) / 127
    rounded = ((x / scale).round() * scale) @ ((w / w_scale).round() * w_scale)
    return ((rounded - x @ w) ** 2).mean().item()


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balancing_lowers_the_error_of_quantized_linears(seed, moments):
    mod = transformer_block(seed, spread=3.0)
    calibration = collect(mod, data(), gram_inputs=BLOCK_INPUTS if moments else None)
    balanced = Balance(balance_factors(mod, calibration))(mod)
    assert quantized_output_error(balanced, data()) < 0.5 * quantized_output_error(mod, data())


def test_decisions_are_centred_and_complete():
    mod = transformer_block(spread=3.0)
    factors = balance_factors(mod, collect(mod, data(), gram_inputs=BLOCK_INPUTS))
    assert {"norm1", "norm2"} <= set(factors) <= {"norm1", "norm2", "attn.v"}
    for exponents in factors.values():
        assert len(exponents) == 8
        assert abs(np.mean(exponents)) <= 0.5


def test_a_group_is_left_alone_when_no_alpha_helps(monkeypatch):
    mod = transformer_block()
    monkeypatch.setattr(
        balancing, "_output_error", lambda group, stats, gram, e, bits: float(np.abs(e).sum())
    )
    assert dict(balance_factors(mod, collect(mod, data()))) == {}


def test_dead_channels_are_harmless():
    absmax, weight = np.array([0, 1, 4], "f4"), np.zeros((3, 2), "f4")
    assert np.abs(balancing._exponents(absmax, (weight,), 0.5)).max() < 12


def test_statistics_of_another_module_or_without_ranges_are_refused():
    mod = transformer_block()
    with pytest.raises(CalibrationError, match="another module"):
        balance_factors(transformer_block(seed=1), collect(mod, data()))
    with pytest.raises(ValueError, match="no ranges per channel of 'norm1'"):
        balance_factors(mod, collect(mod, data(), values=lambda name: name == "x"))
