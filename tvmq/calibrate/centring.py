"""Decide the biases that passes/centre_keys.py gives to attention keys: those that make their mean zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.calibrate.calibration import Calibration
from tvmq.passes.centre_keys import find_keys


def key_biases(mod: tvm.IRModule, calibration: Calibration) -> dict[str, npt.NDArray[np.float32]]:
    """Return the bias [N] of each key whose linear's input moments are known, by its addition's name."""
    calibration.require_module(mod)
    return {
        key.bias: -np.einsum(
            "k,kn->n", calibration.linear_inputs[key.site].mean, key.weight, dtype=np.float32
        )
        for key in find_keys(mod)
        if key.site in calibration.linear_inputs
    }
