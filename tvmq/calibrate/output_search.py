"""Choose scales by the error of the output they lead to, from batches that are looked at one at a time.

Memory holds one batch and a few sums per candidate, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tvmq.calibrate.grids import FloatArray, fake_quantized
from tvmq.calibrate.metrics import Metric
from tvmq.progress import Progress, silent

# Liu et al. and PTQ4ViT take beta = 1.2, EasyQuant 2 from a start that clips.
ALPHA, BETA, CANDIDATES = 0.5, 1.2, 100
ROUNDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class OutputBatch:
    """Some rows: what the operation reads, its exact output [rows, N] and, for "fisher", dL/d(output)."""

    inputs: tuple[torch.Tensor, ...]
    exact: torch.Tensor
    gradient: torch.Tensor | None = None


# (inputs of a batch, one scale [] or [N] per quantized tensor) -> approximate output [rows, N]
Approximate = Callable[[tuple[torch.Tensor, ...], Sequence[FloatArray]], torch.Tensor]


class OutputErrors:
    """The errors of a number of candidates, added up over batches."""

    def __init__(self, metric: Metric, candidates: int) -> None:
        self.metric = metric
        self._totals: list[torch.Tensor | None] = [None] * candidates

    def add(
        self,
        candidate: int,
        exact: torch.Tensor,
        approximate: torch.Tensor,
        gradient: torch.Tensor | None = None,
    ) -> None:
        """Add rows [rows, N] of one candidate's output."""
        sums = self.metric.sums(exact, approximate, gradient)
        total = self._totals[candidate]
        self._totals[candidate] = sums if total is None else total + sums

    def errors(self) -> FloatArray:
        """Return the error of the whole output [C]; every candidate must have been given rows."""
        return np.asarray(self.metric.error(self._sums().sum(-1)))

    def errors_by_column(self) -> FloatArray:
        """Return the error [C, N] of each column, as if it were all; [C, 1] if the metric looks at rows."""
        return np.asarray(self.metric.error(self._sums()))

    def error_of_choice(self, candidates: npt.NDArray[np.int64]) -> float:
        """Return the error of the output whose column n is that of candidates[n]."""
        sums = self._sums()
        return float(self.metric.error(sums[:, candidates, np.arange(sums.shape[2])].sum(-1)))

    def _sums(self) -> FloatArray:
        """Return [k, C, N]."""
        totals = [total for total in self._totals if total is not None]
        if len(totals) < len(self._totals):
            raise ValueError("output errors: a candidate was given no rows; all want the same ones")
        return torch.stack(totals, 1).numpy()


def scale_factors(alpha: float = ALPHA, beta: float = BETA, count: int = CANDIDATES) -> FloatArray:
    """Return 1 and then count even steps from alpha to beta: first is what a tie is decided for."""
    return np.append(1.0, np.linspace(alpha, beta, count))


def best_scale(
    metric: Metric,
    batches: Iterable[OutputBatch],
    scales: Sequence[FloatArray],
    approximate: Approximate,
    *,
    index: int = 0,
    factors: FloatArray | None = None,
) -> tuple[FloatArray, float, float]:
    """Return (the best scale in place of scales[index], its error, the error that scales have as they are).

    Candidates are scales[index] times each factor, factors[0] being 1 (scale_factors() if None). A scale [N]
    is one of the output's columns and gets a factor for each, if the metric has errors by column.
    """
    factors = scale_factors() if factors is None else factors
    found = OutputErrors(metric, len(factors))
    for batch in batches:
        for number, factor in enumerate(factors):
            tried = [scale * factor if at == index else scale for at, scale in enumerate(scales)]
            found.add(number, batch.exact, approximate(batch.inputs, tried), batch.gradient)
    errors, by_column = found.errors(), found.errors_by_column()
    if scales[index].ndim and by_column.shape[1] == len(scales[index]):
        chosen = by_column.argmin(0)
        return scales[index] * factors[chosen], found.error_of_choice(chosen), float(errors[0])
    best = int(errors.argmin())
    return scales[index] * factors[best], float(errors[best]), float(errors[0])


def alternate(
    metric: Metric,
    batches: Iterable[OutputBatch],
    scales: Sequence[FloatArray],
    approximate: Approximate,
    *,
    factors: FloatArray | None = None,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> tuple[list[FloatArray], float]:
    """Return (scales, error): each in turn the best while the others stay (EasyQuant, Wu et al. 2020).

    batches is gone through once for each scale and round, and must give the same rows each time. A round that
    changes nothing is the last. The best of all that was seen is returned, so never worse than scales.
    """
    current, best, least = list(scales), list(scales), float("inf")
    for round_ in range(rounds):
        before = list(current)
        for index in range(len(current)):
            progress("search scales", round_ * len(current) + index, rounds * len(current))
            scale, error, start = best_scale(
                metric, batches, current, approximate, index=index, factors=factors
            )
            if start < least:
                best, least = list(current), start
            current[index] = scale
            if error < least:
                best, least = list(current), error
        if all(np.array_equal(a, b) for a, b in zip(before, current, strict=True)):
            break
    progress("search scales", 1, 1)
    return best, least


def linear_output(
    weight: torch.Tensor, *, bits: int, weight_bits: int, zero_point: int, symmetric: bool
) -> Approximate:
    """Return the output of x @ weight [K, N] by scales (activation [], weight [] or [N]), both quantized.

    The activation's zero_point is that of its start: scaling a range about zero does not move it.
    """

    def output(inputs: tuple[torch.Tensor, ...], scales: Sequence[FloatArray]) -> torch.Tensor:
        x = fake_quantized(inputs[0], float(scales[0]), zero_point, bits, symmetric)
        steps = torch.from_numpy(scales[1]).to(weight.dtype)
        return x @ fake_quantized(weight, steps, 0, weight_bits, True)

    return output
