"""Run a module over calibration data and keep what scales, balancing and weight rounding need.

Memory does not grow with the number of samples: a histogram (or one for each of a few groups of samples) and
three numbers per channel for each value, one second-moment matrix for each distinct input of linear sites
(for each such site, where rows are to count differently).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial, reduce
from types import MappingProxyType

import numpy as np
import torch
import tvm
from tvm import relax

from tvmq import reference
from tvmq.calibrate.batches import MINIMUM_SAMPLES, samples_in
from tvmq.calibrate.calibration import Calibration, InputMoments, ValueStats, module_hash
from tvmq.calibrate.histogram import Histogram
from tvmq.errors import CalibrationError
from tvmq.progress import Progress, silent

NONE_COUNTED: Mapping[str, torch.Tensor] = MappingProxyType({})

# Operators after which axis 1 of a 4-D value need not be its channels any more.
REARRANGING = ("reshape", "permute_dims", "expand_dims", "matmul", "attention", "attention_bias")


def collect(
    mod: tvm.IRModule,
    batches: Iterable[Sequence[torch.Tensor]],
    *,
    values: Callable[[str], bool] | None = None,
    gram_inputs: Mapping[str, str] | None = None,
    importance: Mapping[str, torch.Tensor] = NONE_COUNTED,
    also: reference.Observer | None = None,
    groups: int = 1,
    progress: Progress = silent,
) -> Calibration:
    """Return the statistics of mod's float values over batches (from as_batches).

    values: which parameters and bindings of main to keep, by name; all float ones when None.
    gram_inputs: the name of the input value [..., K] of every linear site whose moments are wanted.
    importance: what each row of such a site's input counts in its covariance, [rows of a batch], by site.
    also: is shown every value too.
    groups: into how many groups the batches are dealt, each with a histogram of its own (ValueStats.groups).
    """
    collector = _Collector(values, gram_inputs or {}, importance, images(mod), groups)
    digest = hashlib.sha256()
    total = max(len(batches), 1) if isinstance(batches, Sized) else None
    progress("calibrate", 0, total or 1)
    samples = 0
    for done, batch in enumerate(batches, start=1):
        for tensor in batch:
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        collector.start(done - 1)
        reference.run(mod, batch, observe=partial(_show, (collector.observe, *([also] if also else []))))
        samples += samples_in(batch)
        progress("calibrate", done, total or done + 1)
    if samples == 0:
        raise CalibrationError(
            f"calibration: no batch is given, at least {MINIMUM_SAMPLES} samples are wanted"
        )
    return Calibration(
        module_hash=module_hash(mod),
        data_hash=digest.hexdigest(),
        samples=samples,
        values=MappingProxyType({name: acc.result() for name, acc in collector.values.items()}),
        linear_inputs=MappingProxyType(collector.moments()),
    )


def _show(observers: Sequence[reference.Observer], name: str, value: torch.Tensor) -> None:
    for observe in observers:
        observe(name, value)


class _Collector:
    """The accumulators of every value that is kept; observe is what the reference calls."""

    def __init__(
        self,
        wanted: Callable[[str], bool] | None,
        gram_inputs: Mapping[str, str],
        importance: Mapping[str, torch.Tensor],
        images: frozenset[str],
        groups: int,
    ) -> None:
        self.wanted = wanted
        self.groups = groups
        self.group = 0
        self.images = images
        self.values: dict[str, _ValueAccumulator] = {}
        self.input_of = gram_inputs
        self.importance = importance
        # By input: those of the sites whose rows count alike, and of each of the others.
        self.inputs: dict[str, dict[str, _MomentAccumulator | None]] = {}
        for site, name in gram_inputs.items():
            self.inputs.setdefault(name, {})[self._own(site)] = None
        self.seen: set[str] = set()

    def start(self, batch: int) -> None:
        """Begin a batch, which has this number."""
        self.seen.clear()
        self.group = batch % self.groups

    def observe(self, name: str, value: torch.Tensor) -> None:
        """Add one value of the batch."""
        if not value.is_floating_point() or value.numel() == 0:
            return
        if name in self.seen:
            raise ValueError(
                f"{name}: two bindings have this name; canonicalize the module before calibrating"
            )
        self.seen.add(name)
        if self.wanted is None or self.wanted(name):
            try:
                accumulator = self.values.get(name)
                if accumulator is None:
                    accumulator = self.values[name] = _ValueAccumulator(name in self.images, self.groups)
                accumulator.update(value, self.group)
            except ValueError as error:
                raise CalibrationError(
                    f"calibration: the float model computes NaN at {name!r}; mend the model or its inputs"
                ) from error
        for site, known in self.inputs.get(name, {}).items():
            moments = known or _MomentAccumulator(value.shape[-1], self.importance.get(site))
            self.inputs[name][site] = moments
            moments.update(value)

    def moments(self) -> dict[str, InputMoments]:
        """Return the moments by site; sites with one input whose rows count alike share one object."""
        results = {
            (name, site): accumulator.result()
            for name, own in self.inputs.items()
            for site, accumulator in own.items()
            if accumulator is not None
        }
        absent = sorted(set(self.input_of.values()) - {name for name, _ in results})
        if absent:
            raise ValueError(f"no float value of the module has the name {absent[0]!r}")
        return {site: results[name, self._own(site)] for site, name in self.input_of.items()}

    def _own(self, site: str) -> str:
        return site if site in self.importance else ""


class _ValueAccumulator:
    """The streaming form of ValueStats."""

    def __init__(self, image: bool, groups: int) -> None:
        self.image = image  # [N, C, H, W]; channels are the last axis of anything else
        self.histograms = [Histogram.empty()] * groups
        self.low: torch.Tensor | None = None  # [C]
        self.high: torch.Tensor | None = None
        self.total: torch.Tensor | None = None  # float64 [C]
        self.rows = 0

    def update(self, value: torch.Tensor, group: int) -> None:
        """Add a batch of one value to a group."""
        value = value.float()
        self.histograms[group] = self.histograms[group].merge(Histogram.of(value))
        if value.ndim < 2:
            return
        axis = 1 if self.image else value.ndim - 1
        others = [i for i in range(value.ndim) if i != axis]
        low, high = value.amin(others), value.amax(others)
        if not bool((low.isfinite() & high.isfinite()).all()):  # masks, which the histogram leaves out too
            value = torch.where(value.isfinite(), value, 0.0)
            low, high = value.amin(others), value.amax(others)
        total = value.sum(others, dtype=torch.float64)
        self.rows += value.numel() // value.shape[axis]
        if self.low is None or self.high is None or self.total is None:
            self.low, self.high, self.total = low, high, total
        else:
            torch.minimum(self.low, low, out=self.low)
            torch.maximum(self.high, high, out=self.high)
            self.total += total

    def result(self) -> ValueStats:
        """Return the frozen statistics."""
        histogram = reduce(Histogram.merge, self.histograms)
        groups = tuple(each for each in self.histograms if each.count) if len(self.histograms) > 1 else ()
        if self.low is None or self.high is None or self.total is None:
            return ValueStats(histogram, groups=groups)
        mean = (self.total / self.rows).float()
        return ValueStats(histogram, self.low.numpy(), self.high.numpy(), mean.numpy(), groups)


class _MomentAccumulator:
    """The streaming form of InputMoments.

    Sums in float32 with the additions of one batch inside the matrix product: the relative error is that of
    a float32 dot product over a batch, far below what rounding weights costs, at half the memory of float64.
    They are about the first batch's mean; about zero, those of a channel that hardly varies say nothing.
    """

    def __init__(self, channels: int, importance: torch.Tensor | None = None) -> None:
        self.importance = importance
        self.products = torch.zeros(channels, channels)
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.counted = torch.zeros(channels, dtype=torch.float64)
        self.about: torch.Tensor | None = None
        self.rows = 0
        self.weight = self.squares = 0.0

    def update(self, value: torch.Tensor) -> None:
        """Add a batch of an input [..., K]."""
        rows = value.detach().reshape(-1, value.shape[-1]).float()
        if self.about is None:
            self.about = rows.mean(0)
        rows = rows - self.about
        counts = torch.ones(len(rows)) if self.importance is None else self.importance
        counted = rows * counts[:, None]
        self.products.addmm_(counted.T, rows)
        self.total += rows.sum(0)
        self.counted += counted.sum(0)
        self.rows += rows.shape[0]
        self.weight += float(counts.sum())
        self.squares += float(counts.square().sum())

    def result(self) -> InputMoments:
        """Return the frozen means."""
        about = torch.zeros(()) if self.about is None else self.about
        mean, counted = (self.total / self.rows).float(), (self.counted / self.weight).float()
        both = torch.outer(counted, mean)
        covariance = self.products / self.weight - both - both.T + torch.outer(mean, mean)
        if self.importance is None:
            return InputMoments(covariance.numpy(), (mean + about).numpy(), self.rows)
        rows = self.weight**2 / self.squares
        return InputMoments(covariance.numpy(), (mean + about).numpy(), rows, (counted - mean).numpy())


def images(mod: tvm.IRModule) -> frozenset[str]:
    """Return the names of main's values laid out [N, C, H, W]: 4-D inputs and what is computed from them."""
    func = mod["main"]
    found = {param for param in func.params if _rank(param) == 4}
    for block in func.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if _rank(binding.var) != 4 or not isinstance(call, relax.Call):
                continue
            elementwise = not str(getattr(call.op, "name", "")).endswith(REARRANGING)
            if elementwise and any(isinstance(arg, relax.Var) and arg in found for arg in call.args):
                found.add(binding.var)
    return frozenset(var.name for var in found)


def _rank(var: relax.Var) -> int:
    return getattr(var.ty, "ndim", -1)
