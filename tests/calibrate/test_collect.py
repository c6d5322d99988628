import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests.strategies import BLOCK_INPUTS, ModuleBuilder, transformer_block
from tvmq import reference
from tvmq.calibrate.collect import collect, images
from tvmq.errors import CalibrationError


@pytest.fixture(scope="module")
def block():
    return transformer_block()


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(0)
    return [(torch.randn(1, 5, 8),) for _ in range(4)]


def observed(mod, batches, name):
    """Return all the values that a name takes, [samples, ...]."""
    kept = []
    for batch in batches:
        reference.run(mod, batch, observe=lambda n, v: kept.append(v) if n == name else None)
    return torch.cat(kept)


def test_statistics_equal_those_of_all_values_at_once(block, batches):
    calibration = collect(block, batches, gram_inputs=BLOCK_INPUTS)
    for name in ("x", "norm1", "attn.v.bias", "gelu.0"):
        every = observed(block, batches, name)
        stats = calibration.values[name]
        assert stats.histogram.minimum == every.min()
        assert stats.histogram.maximum == every.max()
        assert stats.histogram.count == every.numel()
        np.testing.assert_array_equal(stats.absmax_per_channel, every.abs().amax((0, 1)))
        np.testing.assert_allclose(stats.mean_per_channel, every.mean((0, 1)), rtol=1e-4, atol=1e-5)


def test_moments_equal_those_of_all_rows_at_once(block, batches):
    calibration = collect(block, batches, gram_inputs=BLOCK_INPUTS)
    assert set(calibration.linear_inputs) == set(BLOCK_INPUTS)
    for site, name in BLOCK_INPUTS.items():
        rows = observed(block, batches, name)
        rows = rows.reshape(-1, rows.shape[-1]).double()
        moments = calibration.linear_inputs[site]
        assert moments.rows == len(rows)
        np.testing.assert_allclose(moments.gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    assert calibration.linear_inputs["attn.q"] is calibration.linear_inputs["attn.k"]


def test_rows_may_count_differently_about_the_mean_of_all_of_them(block, batches):
    plain = collect(block, batches, gram_inputs=BLOCK_INPUTS).linear_inputs
    counts = torch.arange(observed(block, batches[:1], BLOCK_INPUTS["attn.q"]).shape[-2], dtype=torch.float32)
    found = collect(block, batches, gram_inputs=BLOCK_INPUTS, importance={"attn.q": counts}).linear_inputs
    rows = observed(block, batches, BLOCK_INPUTS["attn.q"])
    rows = rows.reshape(-1, rows.shape[-1]).double() - torch.from_numpy(plain["attn.q"].mean)
    every = counts.repeat(len(rows) // len(counts)).double()
    own = found["attn.q"]
    np.testing.assert_allclose(
        own.covariance, (rows * every[:, None]).T @ rows / every.sum(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(own.mean, plain["attn.q"].mean)
    whole = rows + torch.from_numpy(own.mean)
    gram = (whole * every[:, None]).T @ whole / every.sum()
    np.testing.assert_allclose(own.gram, gram, rtol=1e-4, atol=1e-4)
    assert own.rows == pytest.approx(float(every.sum() ** 2 / every.square().sum()))
    np.testing.assert_array_equal(found["attn.k"].covariance, plain["attn.k"].covariance)
    assert found["attn.k"] is found["attn.v"]


def test_order_of_batches_changes_no_histogram(block, batches):
    first, second = collect(block, batches), collect(block, batches[::-1])
    assert first.data_hash != second.data_hash
    assert first.module_hash == second.module_hash
    for name, stats in first.values.items():
        np.testing.assert_array_equal(stats.histogram.counts, second.values[name].histogram.counts)
        assert stats.quantizer(8, True) == second.values[name].quantizer(8, True)


def test_only_wanted_values_are_kept_and_progress_is_told(block, batches):
    steps = []
    calibration = collect(
        block, iter(batches), values=lambda n: n == "x", progress=lambda *step: steps.append(step)
    )
    assert list(calibration.values) == ["x"]
    assert calibration.samples == 4
    assert steps == [("calibrate", 0, 1), *(("calibrate", i, i + 1) for i in (1, 2, 3, 4))]
    steps.clear()
    collect(block, batches, values=lambda n: n == "x", progress=lambda *step: steps.append(step))
    assert steps == [("calibrate", i, 4) for i in range(5)]


def test_channels_of_images_are_axis_one_and_of_anything_else_the_last():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 4, 5), "float32"))
    conv = make.bind("conv", op.nn.conv2d(x, make.constant(6, 3, 1, 1)))
    relu = make.bind("relu", op.nn.relu(conv))
    last = make.bind("last", op.permute_dims(relu, [0, 2, 3, 1]))
    mod = make.module([x], op.nn.gelu(last))
    assert images(mod) == {"x", "conv", "relu"}
    calibration = collect(mod, [(torch.randn(1, 3, 4, 5),), (torch.randn(1, 3, 4, 5),)])
    sizes = {name: len(stats.mean_per_channel) for name, stats in calibration.values.items()}
    assert sizes == {"x": 3, "conv": 6, "relu": 6, "last": 6, "out": 6}


def test_masks_do_not_spoil_the_ranges(monkeypatch, block):
    value = torch.tensor([[1.0, -torch.inf], [2.0, 3.0]])
    monkeypatch.setattr(reference, "run", lambda mod, batch, observe: observe("logits", value))
    stats = collect(block, [(torch.ones(1),)]).values["logits"]
    assert (stats.histogram.minimum, stats.histogram.maximum) == (1.0, 3.0)
    np.testing.assert_array_equal(stats.absmax_per_channel, [2.0, 3.0])


def test_nan_inside_the_model_is_refused_by_name(monkeypatch, block):
    monkeypatch.setattr(
        reference, "run", lambda mod, batch, observe: observe("fc1", torch.tensor([torch.nan]))
    )
    with pytest.raises(CalibrationError, match="the float model computes NaN at 'fc1'"):
        collect(block, [(torch.ones(1),)])


def test_two_values_of_one_name_are_refused(monkeypatch, block):
    def twice(mod, batch, observe):
        observe("lv", torch.ones(2))
        observe("lv", torch.ones(2))

    monkeypatch.setattr(reference, "run", twice)
    with pytest.raises(ValueError, match="two bindings have this name"):
        collect(block, [(torch.ones(1),)])


def test_absent_input_of_a_site_and_absent_batches_are_refused(block, batches):
    with pytest.raises(ValueError, match="no float value of the module has the name 'nowhere'"):
        collect(block, batches, gram_inputs={"fc": "nowhere"})
    with pytest.raises(CalibrationError, match="no batch is given"):
        collect(block, [])
