"""Propose factors m for the channels of a site's input: the least of a model of its output error.

The model adds the rounding noise of activations x / m and of weights m * W:

    step(m)**2 / 12 * sum_c m_c**2 |W_c|**2   +   sum_n step_n(m)**2 / 12 * sum_c var(x_c) / m_c**2

with step(m) in proportion to the p-norm of the channels' x_c / m_c, the higher p, the less is clipped, and
step_n(m) to the largest |m_c W_cn|, smoothed. Every term is a sum of monomials in m or a norm of such: the
logarithm of the whole is convex in log m, so that descent finds its only minimum. SmoothQuant's
factors lie on a line between what suits the activations alone and what suits the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize

Floats = npt.NDArray[np.float64]

# Norms of a channel's values and between channels, and half the range over each at most: normal values are
# clipped at 3.2 standard deviations in 4 bits (norm 4), hardly in 8.
CREST = {4.0: 2.4, 8.0: 2.0, 32.0: 1.2}
LARGEST = 12.0  # the norm that stands for the largest weight of an output
GRID = 8  # factors are powers of 2**(1 / GRID): rounding noise of the search does not reach them
ITERATIONS = 40
# Of the widest channel, what a narrower one counts as: finer steps would gain it nothing, and one that few
# rows of calibration data show may be wider in others.
NARROWEST = 1 / 32
WIDEST = 12.0  # how far the logarithm of a factor may lie from the mean
TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class NoiseModel:
    """The logarithm of the modelled error and its gradient, in l = log m."""

    size: Floats  # [C]: log of the p-norm of each channel's values
    norm: float  # p
    weight: Floats  # [C]: |W_c|**2
    largest: torch.Tensor  # [C, N]: (|W_cn| / scale)**LARGEST
    scale: float
    variance: Floats  # [C]
    steps: tuple[float, float]  # step / p-norm of an activation, step / largest of a weight

    def __call__(self, l: Floats) -> tuple[float, Floats]:  # noqa: E741  (the l above)
        """Return (log error, its gradient [C])."""
        activations, of_activations = self._activations(l)
        weights, of_weights = self._weights(l)
        total = activations + weights
        gradient = (activations * of_activations + weights * of_weights) / total
        return float(np.log(total)), gradient

    def _activations(self, l: Floats) -> tuple[float, Floats]:  # noqa: E741
        sizes = np.exp(self.norm * (self.size - l - (self.size - l).max()))
        reach = (self.size - l).max() + np.log(sizes.mean()) / self.norm
        energy = np.exp(2 * l) * self.weight
        error = (self.steps[0] * np.exp(reach)) ** 2 / 12 * energy.sum()
        return float(error), 2 * (energy / energy.sum() - sizes / sizes.sum())

    def _weights(self, l: Floats) -> tuple[float, Floats]:  # noqa: E741
        if self.largest.shape[1] == 0:  # depthwise: each output has its own scale
            return 0.0, np.zeros_like(l)
        grown = np.exp(LARGEST * (l - l.max()))
        sums = np.maximum((torch.from_numpy(grown) @ self.largest).numpy(), 1e-300)
        squares = sums ** (2 / LARGEST)
        noise = self.variance * np.exp(-2 * l)
        scale = self.steps[1] * self.scale * np.exp(l.max())
        error = scale**2 / 12 * squares.sum() * noise.sum()
        share = grown * (self.largest @ torch.from_numpy(squares / sums)).numpy() / squares.sum()
        return float(error), 2 * (share - noise / noise.sum())


def proposals(
    rows: Floats, weights: Sequence[Floats], others: Floats, steps: tuple[float, float]
) -> list[Floats]:
    """Return factors [C], one array for each norm of CREST; none for rows of zeros.

    rows: [R, C], values around which the range is to close. weights: [C, taps, N] of the consumers whose
    outputs sum over channels. others: [C], the sums of squares of the weights of those whose outputs do not.
    steps: the step over the range's half, of an activation and of a weight.
    """
    taps = np.concatenate([w.reshape(len(w), -1) for w in weights] or [np.zeros((rows.shape[1], 0))], 1)
    largest = [(w**LARGEST).sum(1) for w in (np.abs(each) / _scale(taps) for each in weights)]
    widest = float(np.abs(rows).max())
    found = []
    for norm in CREST if widest > 0 else ():
        sizes = _floored((np.abs(rows / widest) ** norm).mean(0) ** (1 / norm))
        crest = 1 / float((sizes**norm).mean() ** (1 / norm))
        model = NoiseModel(
            size=np.log(sizes * widest),
            norm=norm,
            weight=_floored((taps**2).sum(1) + others),
            largest=torch.from_numpy(np.concatenate([np.zeros((len(taps), 0)), *largest], 1)),
            scale=_scale(taps),
            variance=_floored(rows.std(0)) ** 2,
            steps=(steps[0] * min(max(crest, 1.0), CREST[norm]), steps[1]),
        )
        found.append(_least(model))
    return found


def _floored(sizes: Floats) -> Floats:
    return np.maximum(sizes, max(float(sizes.max()) * NARROWEST, TINY))


def _scale(taps: Floats) -> float:
    return float(np.abs(taps).max(initial=0.0)) or 1.0


def _least(model: NoiseModel) -> Floats:
    start = model.size - model.size.mean()
    bounds = [(-WIDEST, WIDEST)] * len(start)
    result = minimize(
        model, np.clip(start / 2, -WIDEST, WIDEST), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": ITERATIONS},
    )  # fmt: skip
    octaves = (result.x - result.x.mean()) / np.log(2)
    return np.asarray(np.exp2(np.rint(octaves * GRID) / GRID))
