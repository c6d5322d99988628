"""Constants of a graph as NumPy arrays, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

Array = npt.NDArray[Any]


def array_of(expr: Any) -> Array | None:
    """Return a constant's data, without a copy and read-only; None where expr is no constant."""
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    if str(expr.value.dtype) in ("bool", "bfloat16"):
        return np.asarray(expr.value.numpy())
    view = np.from_dlpack(expr.value)
    view.flags.writeable = False
    return view


def constant(array: Array) -> Any:
    """Return a constant that holds array as it is (dtype kept; 64-bit numbers are not narrowed)."""
    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape)))


def scalar_of(expr: Any) -> float | None:
    """Return the one number of a floating-point constant of any rank; None for anything else."""
    if not isinstance(expr, tvm.ir.GenericConst) or math.prod(int(d) for d in expr.ty.shape) != 1:
        return None
    array = array_of(expr)
    assert array is not None
    return float(array.reshape(-1)[0]) if array.dtype.kind == "f" else None


def channel_vector(expr: Any, channels: int, axis: int, rank: int) -> Array | None:
    """Return the constant's values [channels] if it varies along one axis of a tensor of that rank only.

    axis counts from the front of the tensor that the constant is broadcast against. None otherwise.
    """
    array = array_of(expr)
    if array is None or array.ndim > rank:
        return None
    wanted = [1] * rank
    wanted[axis] = channels
    padded = (1,) * (rank - array.ndim) + array.shape
    if padded != tuple(wanted) and array.size != 1:
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))
