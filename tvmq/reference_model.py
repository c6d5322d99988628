"""A module as the reference computes it, called like a compiled model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import tvm

from tvmq import reference
from tvmq.calibrate.batches import input_specs
from tvmq.inputs import checked_inputs, is_torch
from tvmq.spec import TensorSpec


class ReferenceModel:
    """The model."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self._mod = mod
        self.inputs: tuple[TensorSpec, ...] = input_specs(mod)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; NumPy arrays, or torch tensors if any input is one."""
        arrays = checked_inputs(self.inputs, args, kwargs)
        results = reference.run(self._mod, [torch.from_numpy(np.array(array)) for array in arrays])
        if not any(is_torch(value) for value in (*args, *kwargs.values())):
            results = tuple(result.numpy() for result in results)  # type: ignore[misc]
        return results[0] if len(results) == 1 else results
