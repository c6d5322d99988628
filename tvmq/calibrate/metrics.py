"""How far approximate outputs are from exact ones: sums that add up over batches, and an error made of them.

A metric is two functions, so it streams in fixed memory and parts can be added in any order:
- sums(exact [rows, N], approximate [rows, N], gradient [rows, N] or None) -> float64 [k, N], the sum of k
  terms over rows for each column; or [k, 1] for a metric that looks at a row as a whole;
- error(sums [k, ...]) -> [...], to be made small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tvmq.calibrate.grids import FloatArray

PAIRS = 512  # of each row of an attention map, unless there are fewer


class Metric(Protocol):
    """See the module's docstring."""

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the terms summed over rows, float64 [k, N] or [k, 1]."""

    def error(self, sums: FloatArray) -> FloatArray:
        """Return the error [...] of sums [k, ...] over any rows and columns."""


@dataclass(frozen=True, slots=True)
class SquaredError:
    """The mean of (O - O^)**2."""

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [2, N]: squares, counts."""
        squares = (approximate.double() - exact.double()).square().sum(0)
        return torch.stack([squares, torch.full_like(squares, exact.shape[0])])

    def error(self, sums: FloatArray) -> FloatArray:
        """Return squares / counts, 0 for none."""
        return np.asarray(sums[0] / np.maximum(sums[1], 1))


@dataclass(frozen=True, slots=True)
class Cosine:
    """1 - cos(O, O^), all elements being one vector (EasyQuant, Wu et al. 2020, section 3)."""

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [3, N]: O O^, O O, O^ O^."""
        a, b = exact.double(), approximate.double()
        return torch.stack([(a * b).sum(0), (a * a).sum(0), (b * b).sum(0)])

    def error(self, sums: FloatArray) -> FloatArray:
        """Return 1 - cosine: 0 for two vectors of zeros, 1 if one is zero."""
        return _one_minus_cosine(*sums)


@dataclass(frozen=True, slots=True)
class Pearson:
    """1 - the mean over rows of corr(O_row, O^_row) (Liu et al., NeurIPS 2021, similarity-aware)."""

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [2, 1]: 1 - correlation, rows. A constant row correlates with constant ones only."""
        a = exact.double() - exact.double().mean(1, keepdim=True)
        b = approximate.double() - approximate.double().mean(1, keepdim=True)
        # A constant's mean is off by a rounding, which must not pass for variation.
        a, b = (torch.where(_varies(v, w)[:, None], w, 0.0) for v, w in ((exact, a), (approximate, b)))
        terms = ((a * b).sum(1), (a * a).sum(1), (b * b).sum(1))
        loss = _one_minus_cosine(*(term.numpy() for term in terms)).sum()
        return torch.tensor([[float(loss)], [float(len(a))]], dtype=torch.float64)

    def error(self, sums: FloatArray) -> FloatArray:
        """Return the mean over rows."""
        return np.asarray(sums[0] / np.maximum(sums[1], 1))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Pearson's error + gamma * the ranking loss of attention maps (Liu et al., NeurIPS 2021, ranking-aware).

    The loss of a pair (i, j) of keys is max(0, theta - (A^_i - A^_j) * sign(A_i - A_j)). It is averaged over
    pairs and rows, which the paper sums over, so that gamma means the same for maps of any size; a random
    choice of pairs, drawn from seed, stands for all.
    """

    seed: int = 0
    gamma: float = 0.1
    theta: float = 0.2
    pairs: int = PAIRS
    pearson: Pearson = field(default=Pearson())

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [3, 1]: Pearson's two, and the loss of pairs averaged over them."""
        i, j = torch.from_numpy(random_pairs(exact.shape[1], self.pairs, self.seed))
        sign = (exact[:, i] - exact[:, j]).sign().double()
        margin = (approximate[:, i] - approximate[:, j]).double() * sign
        loss = (self.theta - margin).clamp_(min=0).sum() / max(len(i), 1)
        return torch.cat([self.pearson.sums(exact, approximate, gradient), loss.reshape(1, 1)])

    def error(self, sums: FloatArray) -> FloatArray:
        """Return both losses, each averaged over rows."""
        ranking = sums[2] / np.maximum(sums[1], 1)
        return np.asarray(self.pearson.error(sums[:2]) + self.gamma * ranking)


@dataclass(frozen=True, slots=True)
class Fisher:
    """The sum of (dL/dO)**2 (O - O^)**2 (PTQ4ViT, Yuan et al. 2022, Hessian-guided metric).

    L is the loss between the quantized and the float model's final output; its squared gradients stand for
    the diagonal of its Hessian. They are taken once, at the float model.
    """

    def sums(
        self, exact: torch.Tensor, approximate: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [1, N]."""
        if gradient is None:
            raise ValueError("fisher: no gradient is given; dL/dO of the shape of O is wanted")
        return ((approximate.double() - exact.double()) * gradient.double()).square().sum(0)[None]

    def error(self, sums: FloatArray) -> FloatArray:
        """Return the sum itself."""
        return np.asarray(sums[0])


METRICS: Mapping[str, Callable[[], Metric]] = MappingProxyType(
    {"mse": SquaredError, "cosine": Cosine, "pearson": Pearson, "ranking": Ranking, "fisher": Fisher}
)


def random_pairs(width: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return [2, min(count, all)] different pairs i < j < width: all, or a choice that seed decides."""
    total = width * (width - 1) // 2
    if count >= total:
        return np.array(np.triu_indices(width, 1), np.int64)
    # Pairs are numbered (0,1), (0,2), (1,2), (0,3), ...: j is where j (j - 1) / 2 passes the number.
    numbers = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    starts = np.arange(1, width + 1) * np.arange(width) // 2  # of j = 1, 2, ...
    j = np.searchsorted(starts, numbers, "right")
    return np.array([numbers - starts[j - 1], j], np.int64)


def attention_maps(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """Return softmax(scale * q k^T) as rows [batch * queries, keys] for q, k [batch, tokens, head_dim]."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, -1).flatten(0, -2)


def _one_minus_cosine(ab: FloatArray, aa: FloatArray, bb: FloatArray) -> FloatArray:
    norms = np.sqrt(aa) * np.sqrt(bb)
    cosine = np.where(norms > 0, ab / np.where(norms > 0, norms, 1), (aa == bb) * 1.0)
    return np.asarray(np.maximum(1 - cosine, 0.0))


def _varies(values: torch.Tensor, centred: torch.Tensor) -> torch.Tensor:
    """Return [rows]: whether a row's distance from its mean is more than float64 rounding."""
    size = values.double().abs().amax(1)
    return centred.abs().amax(1) > size * math.ulp(1.0) * 4
