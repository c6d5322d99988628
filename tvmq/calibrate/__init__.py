"""Calibration: from data to the frozen statistics that scales and balancing are decided on."""

from tvmq.calibrate.balancing import balance_factors
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.calibrate.calibration import Calibration, InputMoments, ValueStats, module_hash
from tvmq.calibrate.collect import collect
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import OBSERVERS, TensorStats, quantization_range

__all__ = [
    "OBSERVERS",
    "Calibration",
    "Histogram",
    "InputMoments",
    "TensorStats",
    "ValueStats",
    "as_batches",
    "balance_factors",
    "collect",
    "input_specs",
    "module_hash",
    "quantization_range",
]
