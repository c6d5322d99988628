"""Turn whatever the user gives as calibration data into checked batches of the model's own shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tvm

from tvmq.errors import CalibrationError, TvmqWarning
from tvmq.spec import TensorSpec

Batch = tuple[torch.Tensor, ...]

MINIMUM_SAMPLES, GOOD_SAMPLES = 2, 32
LABELS_LEFT_OUT = (
    "calibration: batches of two arrays for one input; the second is taken for labels and left out"
)
EXAMPLE = f"calibration=[(image,) for image in images[:{GOOD_SAMPLES}]]"


def input_specs(mod: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Return the inputs of main, in order."""
    return tuple(
        TensorSpec(param.name, tuple(int(size) for size in param.ty.shape), str(param.ty.dtype))
        for param in mod["main"].params
    )


def as_batches(calibration: object, specs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """Yield one tensor per input, each of its spec's shape and dtype, finite.

    calibration: one array [N, ...] of samples, a dict of such arrays by input name, or an iterable of items.
    An item is an array (one input), a tuple or list of arrays in input order, or a dict by input name, with
    or without the batch axis. Items are cut and joined to the model's batch size. Nothing is yielded before
    two different samples were seen. CalibrationError for everything that does not fit.
    """
    items = (_item(item, index, specs) for index, item in enumerate(_items(calibration, specs)))
    size = _batch_size(specs)
    return _varied(items if size is None else _rebatched(items, size))


def samples_in(batch: Sequence[torch.Tensor]) -> int:
    """Return how many samples a batch holds; inputs without axes are one."""
    return len(batch[0]) if batch[0].ndim else 1


def _items(calibration: object, specs: Sequence[TensorSpec]) -> Iterable[object]:
    if calibration is None:
        raise CalibrationError(
            f"calibration: no data is given, {GOOD_SAMPLES} or more typical inputs are wanted, e.g. {EXAMPLE}"
        )
    if isinstance(calibration, (np.ndarray, torch.Tensor)):
        # An array of samples: one axis more than a sample has, the first one counting samples.
        return _samples([calibration], specs)
    if isinstance(calibration, Mapping):
        return _samples(_by_name(calibration, "calibration", specs), specs)
    if isinstance(calibration, (str, bytes)) or not isinstance(calibration, Iterable):
        raise CalibrationError(
            f"calibration: {type(calibration).__name__} is given, arrays or batches of arrays are wanted, "
            f"e.g. {EXAMPLE}"
        )
    return calibration


def _samples(arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> Iterable[object]:
    """Return the slices of one sample each, keeping the batch axis, of arrays [N, ...]."""
    if len(arrays) != len(specs):
        raise CalibrationError(_wrong_number("calibration", len(arrays), specs))
    lengths = {int(array.shape[0]) if getattr(array, "ndim", 0) else 0 for array in arrays}
    if len(lengths) != 1:
        raise CalibrationError(
            f"calibration: the arrays hold {_listed(sorted(lengths))} samples, one number is wanted in all"
        )
    if any(len(spec.shape) != array.ndim for array, spec in zip(arrays, specs, strict=True)):
        _refuse_shapes(arrays, specs)
    return (tuple(array[i : i + 1] for array in arrays) for i in range(lengths.pop()))


def _refuse_shapes(arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    for array, spec in zip(arrays, specs, strict=True):
        if len(spec.shape) != array.ndim:
            raise CalibrationError(
                f"calibration: input {spec.name!r} has shape {list(array.shape)}, samples of shape "
                f"{list(spec.shape[1:])} are wanted along a first axis"
            )


def _item(item: object, index: int, specs: Sequence[TensorSpec]) -> Batch:
    """Return the checked tensors of one item, each with its batch axis."""
    where = f"calibration: batch {index}"
    if isinstance(item, Mapping):
        arrays = _by_name(item, where, specs)
    elif isinstance(item, (tuple, list)):
        arrays = list(item)
    else:
        arrays = [item]
    if _labelled(arrays, specs):
        arrays = arrays[:1]
        if index == 0:
            warnings.warn(TvmqWarning(LABELS_LEFT_OUT), stacklevel=2)
    if len(arrays) != len(specs):
        raise CalibrationError(_wrong_number(where, len(arrays), specs))
    batched = _batch_size(specs) is not None
    tensors = tuple(
        _tensor(array, f"{where}, input {spec.name!r}", spec, batched)
        for array, spec in zip(arrays, specs, strict=True)
    )
    sizes = {tensor.shape[0] for tensor in tensors} if batched else set()
    if len(sizes) > 1:
        raise CalibrationError(
            f"{where}: the inputs hold {_listed(sorted(sizes))} samples, one number is wanted in all"
        )
    return tensors


def _labelled(arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> bool:
    """Tell whether arrays are the only input's batch, and labels [B] or [B, classes] that do not fit it."""
    if len(specs) != 1 or len(arrays) != 2 or not all(hasattr(array, "shape") for array in arrays):
        return False
    wanted, (x, y) = specs[0].shape, (tuple(array.shape) for array in arrays)
    fits = len(wanted) > 0 and _holds_samples(x, wanted) and not _holds_samples(y, wanted)
    return fits and len(y) in (1, 2) and y[0] == x[0]


def _by_name(item: Mapping[Any, Any], where: str, specs: Sequence[TensorSpec]) -> list[Any]:
    names = [spec.name for spec in specs]
    if set(item) != set(names):
        raise CalibrationError(f"{where}: has inputs {sorted(map(str, item))}, {sorted(names)} are wanted")
    return [item[name] for name in names]


def _tensor(array: object, where: str, spec: TensorSpec, batched: bool) -> torch.Tensor:
    """Return array as a contiguous tensor of spec's dtype and shape; batched: with any number of samples."""
    if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
        tensor = torch.from_numpy(np.array(array, order="C", copy=None))
    elif isinstance(array, torch.Tensor):
        tensor = array.detach().cpu().contiguous()
    else:
        kind = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
        raise CalibrationError(f"{where}: is {kind}, an array or tensor of {spec.dtype} is wanted")
    tensor = _cast(tensor, where, spec.dtype)
    if tensor.ndim == len(spec.shape) - 1:
        tensor = tensor[None]
    shape = tuple(tensor.shape)
    if shape != spec.shape and not (batched and _holds_samples(shape, spec.shape)):
        raise CalibrationError(f"{where}: has shape {list(tensor.shape)}, {list(spec.shape)} is wanted")
    return tensor


def _cast(tensor: torch.Tensor, where: str, dtype: str) -> torch.Tensor:
    """Return tensor in dtype if the values survive: float to float, integer to integer."""
    wanted: torch.dtype = getattr(torch, dtype)
    given = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() != wanted.is_floating_point:
        raise CalibrationError(
            f"{where}: has dtype {given}, {dtype} is wanted; prepare it exactly as for the float model"
        )
    cast = tensor.to(wanted)
    if wanted.is_floating_point:
        broken = int((~torch.isfinite(cast)).sum())
        if broken:
            kind = "NaN" if bool(torch.isnan(cast).any()) else "infinite"
            raise CalibrationError(
                f"{where}: {broken} of {cast.numel()} values are {kind}, finite {dtype} values are wanted; "
                "leave the sample out or mend its preparation"
            )
    elif not torch.equal(cast.to(tensor.dtype), tensor):
        raise CalibrationError(f"{where}: holds {given} values outside the range of {dtype}")
    return cast


def _holds_samples(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether shape is the wanted one but for the number of samples, which is at least one."""
    return len(shape) == len(wanted) and shape[1:] == wanted[1:] and 0 not in shape


def _batch_size(specs: Sequence[TensorSpec]) -> int | None:
    """Return the batch size that every input shares, None where they have no batch axis in common."""
    sizes = {spec.shape[:1] for spec in specs}
    return next(iter(next(iter(sizes))), None) if len(sizes) == 1 else None


def _rebatched(items: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the items' samples size at a time."""
    waiting: Batch | None = None
    total = 0
    for item in items:
        total += item[0].shape[0]
        joined = item if waiting is None else _joined(waiting, item)
        for start in range(0, joined[0].shape[0] - size + 1, size):
            yield tuple(tensor[start : start + size] for tensor in joined)
        left = joined[0].shape[0] % size
        waiting = tuple(tensor[-left:] for tensor in joined) if left else None
    if waiting is not None and total >= MINIMUM_SAMPLES:
        full = total // size
        raise CalibrationError(
            f"calibration: {total} samples do not fill batches of {size}; give {max(full, 1) * size} "
            f"or {(full + 1) * size}, or compile the model with batch size 1"
        )
    if waiting is not None:
        raise CalibrationError(_too_few(total))


def _joined(first: Batch, second: Batch) -> Batch:
    return tuple(torch.cat(pair) for pair in zip(first, second, strict=True))


def _varied(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass batches on once two samples differ; refuse data in which none do."""
    held: list[Batch] = []
    varied = False
    for batch in batches:
        if not varied:
            held.append(batch)
            varied = _differs(batch, held[0])
            if varied:
                yield from held
                held.clear()
        else:
            yield batch
    if not varied:
        _refuse_held(held)


def _differs(batch: Batch, first: Batch) -> bool:
    """Tell whether any sample of batch is unlike the first sample of first."""
    if not batch[0].ndim:
        return any(not torch.equal(new, old) for new, old in zip(batch, first, strict=True))
    return any(
        new.shape[1:] != old.shape[1:] or bool((new != old[:1]).any())
        for new, old in zip(batch, first, strict=True)
    )


def _refuse_held(held: Sequence[Batch]) -> None:
    samples = sum(map(samples_in, held))
    if samples < MINIMUM_SAMPLES:
        raise CalibrationError(_too_few(samples))
    raise CalibrationError(
        f"calibration: all {samples} samples are identical, so ranges would mean nothing; "
        f"different typical inputs are wanted, e.g. {EXAMPLE}"
    )


def _too_few(samples: int) -> str:
    have = "the data is empty" if samples == 0 else "there is one sample"
    wanted = f"at least {MINIMUM_SAMPLES} are wanted and {GOOD_SAMPLES} or more are good"
    return f"calibration: {have}, {wanted}, e.g. {EXAMPLE}"


def _wrong_number(where: str, number: int, specs: Sequence[TensorSpec]) -> str:
    names = [spec.name for spec in specs]
    return (
        f"{where}: holds {number} array{'s' * (number != 1)}, the model takes {len(names)}: {names}; "
        "leave labels out"
    )


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
