import json

import numpy as np
import pytest
import torch

from tests.strategies import BLOCK_INPUTS, transformer_block
from tvmq.calibrate.calibration import Calibration, ValueStats, module_hash
from tvmq.calibrate.collect import collect
from tvmq.calibrate.histogram import Histogram
from tvmq.errors import CalibrationError


@pytest.fixture(scope="module")
def calibration():
    torch.manual_seed(0)
    return collect(transformer_block(), [(torch.randn(1, 5, 8),) for _ in range(3)], gram_inputs=BLOCK_INPUTS)


def test_what_is_saved_is_loaded(calibration, tmp_path):
    path = tmp_path / "calibration.json"
    calibration.save(path)
    loaded = Calibration.load(path)
    for name in ("module_hash", "data_hash", "samples"):
        assert getattr(loaded, name) == getattr(calibration, name)
    assert list(loaded.values) == list(calibration.values)
    for name, stats in calibration.values.items():
        assert loaded.values[name].quantizer(8, False) == stats.quantizer(8, False)
        np.testing.assert_array_equal(loaded.values[name].mean_per_channel, stats.mean_per_channel)
        np.testing.assert_array_equal(loaded.values[name].absmax_per_channel, stats.absmax_per_channel)
    for site, moments in calibration.linear_inputs.items():
        np.testing.assert_array_equal(loaded.linear_inputs[site].gram, moments.gram)
        np.testing.assert_array_equal(loaded.linear_inputs[site].mean, moments.mean)
    assert loaded.linear_inputs["attn.q"] is loaded.linear_inputs["attn.v"]
    assert json.loads(path.read_text())["samples"] == 3


def test_a_value_that_was_only_masked_survives_the_file(calibration, tmp_path):
    masked = ValueStats(Histogram.of(torch.tensor([-torch.inf])))
    both = Calibration(module_hash="0", data_hash="1", samples=2, values={"mask": masked}, linear_inputs={})
    both.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json").values["mask"].histogram.count == 0


def test_another_module_is_refused(calibration):
    calibration.require_module(transformer_block())
    with pytest.raises(
        CalibrationError, match=r"another module \(hash .* != .*\); collect it again on this one"
    ):
        calibration.require_module(transformer_block(seed=1))


def test_module_hash_is_blind_to_names_only():
    assert module_hash(transformer_block()) == module_hash(transformer_block())
    assert len(module_hash(transformer_block())) == 16
    assert module_hash(transformer_block()) != module_hash(transformer_block(seed=1))


@pytest.mark.parametrize("content", [None, "", "{}", '{"schema": 2}', "[1]"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CalibrationError, match="cannot be read as a calibration"):
        Calibration.load(path)


def test_a_truncated_array_file_is_refused(calibration, tmp_path):
    path = tmp_path / "calibration.json"
    calibration.save(path)
    arrays = tmp_path / "calibration.json.npz"
    arrays.write_bytes(arrays.read_bytes()[:200])
    with pytest.raises(CalibrationError, match="cannot be read as a calibration"):
        Calibration.load(path)
