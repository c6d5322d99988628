"""Decide how the channels of each group are balanced: the factors and shifts that passes/balance.py applies.

Candidates are the factors that models of the noise like best (channel_factors.py), each around zero and
around the channels' middles, and doing nothing. Among them decides the error of the consumers' outputs,
measured on rows of calibration data that are quantized as they would be, in the observer's range. Half of the
rows is not shown to the models: factors for a channel that was narrow by chance fail there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import tvm

from tvmq.calibrate.channel_factors import NARROWEST, proposals
from tvmq.calibrate.constant_inputs import calmed, one_code
from tvmq.calibrate.grids import integer_range
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import quantization_range
from tvmq.calibrate.rows import Rows
from tvmq.passes.balance import Balancing
from tvmq.passes.balance_groups import Group, find_groups
from tvmq.spec import Precision

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MOST_OUTPUTS = 512  # of a site's, those that errors are computed of; taken evenly
PLAIN = Precision(8, 8)
WORTH_IT = 0.9  # of the error of doing nothing: less is chance
# Rows per channel, and rows that are enough for any number of channels: from fewer, ranges are chance too.
ROWS_PER_CHANNEL, ENOUGH_ROWS = 2, 256
ENOUGH_POOLED = 16  # rows where each is of another sample: tokens of one are much alike


def balance_factors(
    mod: tvm.IRModule,
    rows: Rows,
    *,
    precisions: Mapping[str, Precision | None] | None = None,
    method: str = "mse",
) -> Mapping[str, Balancing]:
    """Decide for every group of mod, which is canonical; groups best left alone are absent.

    rows: of the value of every group. precisions: of sites, w8a8 where they say nothing; a group that no
    integer site takes is left alone. method: the observer that will choose the ranges.
    """
    decided = {}
    for group in find_groups(mod):
        known = [(precisions or {}).get(consumer.site, PLAIN) for consumer in group.consumers]
        integer = [precision for precision in known if precision is not None]
        seen = rows.of(group.value)
        if seen is None:
            raise ValueError(f"balance: calibration has no rows of {group.value!r}")
        enough = ENOUGH_POOLED if group.pooled else ENOUGH_ROWS
        few = len(seen) < min(ROWS_PER_CHANNEL * group.channels, enough)
        if not integer or few or not np.isfinite(seen).all():
            continue
        bits = min(p.weight_bits for p in integer), min(p.activation_bits for p in integer)
        best = _decide(group, _Site(group, seen, bits, method))
        if best is not None:
            decided[group.site] = best
    return MappingProxyType(decided)


def _decide(group: Group, site: _Site) -> Balancing | None:
    """Return the candidate of least output error; None if that is to leave the group alone."""
    best, least = None, site.error(_nothing(group.channels)) * WORTH_IT
    for candidate in _candidates(group, site):
        error = site.error(candidate)
        if error < least:
            best, least = candidate, error
    return best


def _candidates(group: Group, site: _Site) -> Iterator[Balancing]:
    still = np.zeros(group.channels, np.float32)
    middle = ((site.rows.max(0) + site.rows.min(0)) / 2).astype(np.float32)
    for shifts in (middle, still) if group.shiftable else (still,):
        for factors in site.proposals(shifts):
            yield Balancing(factors.astype(np.float32), shifts)


def _nothing(channels: int) -> Balancing:
    return Balancing(np.ones(channels, np.float32), np.zeros(channels, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """The consumers of a group as one."""

    group: Group
    rows: Float32  # [R, C] that they see
    bits: tuple[int, int]  # of weights, of activations
    method: str

    def weights(self) -> list[Float32]:
        """Return [C, taps, N] of each consumer that mixes channels, with at most MOST_OUTPUTS outputs."""
        found = [consumer.weight for consumer in self.group.consumers if consumer.mixes]
        stride = -(-sum(w.shape[2] for w in found) // MOST_OUTPUTS)
        return [self._calm(w[:, :, ::stride]) for w in found]

    def _calm(self, weight: Float32) -> Float32:
        """Return weight [C, taps, N] as it will be rounded."""
        if weight.shape[1] > 1:
            return weight
        low, high = self.rows.min(0), self.rows.max(0)
        finest = NARROWEST * float(np.abs(self.rows).max()) / 2 ** self.bits[1]  # under any factor proposed
        if finest <= 0:
            return weight
        calm = calmed(weight[:, 0].astype(np.float64), one_code(low, high, finest))
        return calm[:, None].astype(np.float32)

    def separate(self) -> Float64:
        """Return [C]: sums of squares of the weights of depthwise consumers."""
        total = np.zeros(self.group.channels)
        for consumer in self.group.consumers:
            if not consumer.mixes:
                total += (consumer.weight.astype(np.float64) ** 2).sum((1, 2))
        return total

    def proposals(self, shifts: Float32) -> list[Float64]:
        """Return what the models of the noise like best, [C] each."""
        weight_bits, activation_bits = self.bits
        steps = 2 / (2**activation_bits - 1), 1 / integer_range(weight_bits, True)[1]
        weights = [w.astype(np.float64) for w in self.weights()]
        half = self.rows[: (len(self.rows) + 1) // 2] - shifts
        return proposals(half.astype(np.float64), weights, self.separate(), steps)

    def error(self, balancing: Balancing) -> float:
        """Return the mean squared error of the outputs, summed, less its mean, which biases take."""
        m = balancing.factors
        balanced = (self.rows - balancing.shifts) / m
        noise = (self._quantized(balanced) - balanced) * m
        noise = noise[len(noise) // 2 :]  # the half that no model has seen
        noise -= noise.mean(0)
        variance = balanced.var(0).astype(np.float64)
        error = float(((noise.astype(np.float64) ** 2).mean(0) * self.separate()).sum())
        for weight in self.weights():
            channels, taps, outputs = weight.shape
            made = torch.from_numpy(noise) @ torch.from_numpy(weight.reshape(channels, -1).copy())
            error += made.square_().sum(dtype=torch.float64).item() / len(noise)
            scaled = (weight * m[:, None, None]).reshape(channels * taps, outputs)
            step = np.abs(scaled).max(0) / integer_range(self.bits[0], True)[1]
            step = np.where(step > 0, step, np.float32(1))
            rounding = np.rint(scaled / step) * step - scaled
            squares = (rounding**2).reshape(channels, taps * outputs).sum(1)
            error += float((squares * variance).sum())
        return error

    def _quantized(self, values: Float32) -> Float32:
        bits = self.bits[1]
        scale, zero = quantization_range(Histogram.of(values), bits, False, self.method)
        low, high = integer_range(bits, False)
        steps = np.clip(np.rint(values / np.float32(scale)) + zero, low, high) - zero
        return np.asarray(steps * np.float32(scale), np.float32)
