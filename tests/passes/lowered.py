"""Run what a lowering function emits for one stored value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tvm import relax

from tvmq import reference
from tvmq.formats import QuantParams
from tvmq.passes.layouts import channels_last
from tvmq.passes.lowering_values import Emitter, Expr, Stored


def lowered_value(
    x: np.ndarray, params: QuantParams, lower: Callable[[Emitter, Stored], Expr]
) -> torch.Tensor:
    """Return the value of the expression that lower emits for x stored in its logical shape."""
    var, emit = relax.Var("x", relax.TensorType(x.shape, str(x.dtype))), Emitter()
    result = lower(emit, Stored(params, channels_last(x.shape), dense_var=var))
    mod = emit.finish(relax.Function([var], var, var.ty), result)
    return reference.run(mod, [torch.from_numpy(x)])[0]
