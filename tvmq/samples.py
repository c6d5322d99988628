"""Cut a model of a batch down to one sample, where that computes the same and is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch
import tvm

from tvmq import reference
from tvmq.calibrate.batches import Batch, as_batches, input_specs
from tvmq.passes.one_sample import batch_of, one_sample

# (module of one sample, samples) -> whether they are to be computed one after the other.
OneByOne = Callable[[tvm.IRModule, int], bool]
TOLERANCE = 1e-3  # of the largest value: sums of another order, in float32


def cut(
    mod: tvm.IRModule, calibration: object, one_by_one: OneByOne | None
) -> tuple[tvm.IRModule, list[Batch], int]:
    """Return a canonical module, its calibration batches, and how often it runs for one call.

    Without one_by_one, or where that says no, or where samples are not independent: mod itself, once.
    """
    one = one_sample(mod) if one_by_one else None
    samples = batch_of(mod)
    if one is None or one_by_one is None or not one_by_one(one, samples):
        return mod, list(as_batches(calibration, input_specs(mod))), 1
    single = list(as_batches(calibration, input_specs(one)))
    if _computes_alike(mod, one, joined(single, samples)):
        return one, single, samples
    return mod, list(as_batches(single, input_specs(mod))), 1


def joined(batches: Sequence[Batch], count: int) -> Batch:
    """Return the first `count` batches as one, from the start again where there are fewer."""
    return tuple(torch.cat(parts) for parts in zip(*islice(cycle(batches), count), strict=True))


def _computes_alike(mod: tvm.IRModule, one: tvm.IRModule, batch: Batch) -> bool:
    """Whether one sample after the other gives what the batch gives."""
    rows = zip(*(array.tensor_split(len(array)) for array in batch), strict=True)
    alone = [reference.run(one, row) for row in rows]
    found = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    return all(
        bool((a.double() - b.double()).abs().max() <= TOLERANCE * a.double().abs().max())
        for a, b in zip(reference.run(mod, batch), found, strict=True)
    )
