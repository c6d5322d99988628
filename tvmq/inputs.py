"""Check what a compiled model is called with; every refusal says what is wanted.

A model on a GPU also takes what lies in the GPU's memory, from torch or whatever else speaks DLPack.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from tvmq.errors import InputError
from tvmq.gpu import CUDA_DEVICE
from tvmq.spec import Array, TensorSpec


def checked_inputs(
    specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any], *, gpu: int | None = None
) -> list[Any]:
    """Return one NumPy array per spec from arrays or torch tensors, in this machine's byte order.

    gpu: what lies in the memory of the GPU of that number is returned as it is.
    Raises InputError for an unfit one.
    """
    if not kwargs and len(args) == len(specs):
        return [_checked(spec, value, gpu) for spec, value in zip(specs, args, strict=True)]
    names = [spec.name for spec in specs]
    for name in kwargs:
        if name not in names[len(args) :]:
            state = "is given twice" if name in names else "is unknown"
            raise InputError(f"input {name!r}: {state}; the model takes {_listed(specs)}")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if len(args) > len(specs) or len(given) != len(specs):
        count = len(args) + len(kwargs)
        raise InputError(f"inputs: {count} given, {len(specs)} wanted: {_listed(specs)}")
    return [_checked(spec, given[spec.name], gpu) for spec in specs]


def is_on_gpu(value: Any) -> bool:
    """Tell whether value lies in a GPU's memory."""
    if isinstance(value, np.ndarray):
        return False
    place = getattr(value, "__dlpack_device__", None)
    return place is not None and int(place()[0]) == CUDA_DEVICE


def is_torch(value: Any) -> bool:
    """Tell whether value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _checked(spec: TensorSpec, value: Any, gpu: int | None) -> Any:
    if gpu is None or not is_on_gpu(value):
        return _checked_array(spec, value)
    return _on_gpu(spec, value, gpu)


def _on_gpu(spec: TensorSpec, value: Any, gpu: int) -> Any:
    """Return a value in the GPU's memory if it has the shape and dtype of spec; its numbers are not read."""
    if value.__dlpack_device__()[1] != gpu:
        raise InputError(
            f"input {spec.name!r}: is on GPU {value.__dlpack_device__()[1]}, the model is on {gpu}; "
            f"move it there, or let CUDA_VISIBLE_DEVICES name that GPU alone"
        )
    shape, dtype = tuple(map(int, value.shape)), str(value.dtype).removeprefix("torch.")
    if (shape, dtype) != (spec.shape, spec.dtype):
        raise InputError(
            f"input {spec.name!r}: {dtype} {list(shape)} given, {spec.dtype} {list(spec.shape)} wanted; "
            f"convert it, or compile the model for it"
        )
    return value.detach().contiguous() if is_torch(value) else value


def _checked_array(spec: TensorSpec, value: Any) -> Array:
    array = _as_array(spec, value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype != _dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r}: dtype {array.dtype.name} given, {spec.dtype} wanted; "
            f"convert it with x.astype('{spec.dtype}') or tensor.to(torch.{spec.dtype})"
        )
    if array.shape != spec.shape:
        raise InputError(
            f"input {spec.name!r}: shape {list(array.shape)} given, {list(spec.shape)} wanted; "
            f"{_shape_hint(spec, array)}"
        )
    # Every call pays for this: isfinite uses the widest vectors, a sum or einsum took 1.5 to 2 times as long.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"input {spec.name!r}: holds NaN or infinity, finite numbers are wanted; clean the data"
        )
    return array


@cache
def _dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype; one that exists already compares in a tenth of the time that a name takes."""
    return np.dtype(name)


def _as_array(spec: TensorSpec, value: Any) -> Array:
    if is_torch(value):
        if value.device.type != "cpu":
            raise InputError(f"input {spec.name!r}: is on {value.device}, the CPU is wanted; call .cpu()")
        if str(value.dtype) == "torch.bfloat16":
            raise InputError(
                f"input {spec.name!r}: dtype bfloat16 given, {spec.dtype} wanted; "
                f"convert it with tensor.to(torch.{spec.dtype})"
            )
        array: Array = value.detach().resolve_conj().resolve_neg().numpy()
        return array
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"input {spec.name!r}: {type(value).__name__} given, a NumPy array or torch tensor is wanted"
        )
    return value


def _shape_hint(spec: TensorSpec, array: Array) -> str:
    if array.shape == spec.shape[1:]:
        return "add the batch dimension with x[None]"
    if array.shape[1:] == spec.shape[1:]:
        return f"give it {spec.shape[0]} at a time, or compile the model with this batch (--batch)"
    return "a compiled model takes one shape; resize the input, or compile the model with this shape"


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs)
