"""Cut a model of a batch down to one sample, where that computes the same.

Its numbers are chosen for one sample whether or not it runs sample by sample in the end: what a machine does
sooner must not decide what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import torch
import tvm

from tvmq import reference
from tvmq.calibrate.batches import Batch, as_batches, input_specs
from tvmq.golden import random_like
from tvmq.passes.one_sample import batch_of, one_sample

TOLERANCE = 1e-3  # of the largest value: sums of another order, in float32


def cut(mod: tvm.IRModule, calibration: object) -> tuple[tvm.IRModule, list[Batch], int]:
    """Return a canonical module of one sample, calibration batches for it, and the samples of a call.

    Where samples are not independent: mod itself, which has one.
    """
    one, samples = one_sample(mod), batch_of(mod)
    if one is None:
        return mod, list(as_batches(calibration, input_specs(mod))), 1
    single = list(as_batches(calibration, input_specs(one)))
    if _computes_alike(mod, one, _distinct(joined(single, samples))):
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
    return all(_alike(a, b) for a, b in zip(reference.run(mod, batch), found, strict=True))


def _distinct(batch: Batch) -> Batch:
    """Return inputs like these, but no two samples of them alike: else an order of theirs may not show."""
    return tuple(torch.from_numpy(array) for array in random_like([array.numpy() for array in batch]))


def _alike(exact: torch.Tensor, found: torch.Tensor) -> bool:
    if not exact.is_floating_point():
        return torch.equal(exact, found)
    exact, found = exact.double(), found.double()
    return bool((exact - found).abs().max() <= TOLERANCE * exact.abs().max())
