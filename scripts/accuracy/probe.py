"""A linear classifier on the features of a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the standardized weights; the best on held-out features is taken
HELD_OUT = 0.1
STEPS = 300

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: features [N, F] to scores [N, classes]."""

    layer: nn.Linear
    decay: float
    held_out: float  # share of held-out inputs that it had right when fitted to the others


def fitted(features: Array, labels: Array, classes: int, seed: int) -> Probe:
    """Return logistic regression on standardized features, the standardization folded into its weights."""
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    held, rest = order[: int(HELD_OUT * len(x))], order[int(HELD_OUT * len(x)) :]
    right = {}
    for decay in DECAYS:
        layer = regression(x[rest], y[rest], classes, decay)
        right[decay] = float((layer(x[held]).argmax(1) == y[held]).float().mean())
    decay = max(right, key=lambda d: right[d])
    layer = regression(x, y, classes, decay)
    with torch.no_grad():
        layer.weight /= std
        layer.bias -= layer.weight @ mean
    return Probe(layer, decay, right[decay])


def regression(x: Tensor, y: Tensor, classes: int, decay: float) -> nn.Linear:
    """Return the weights that minimise cross-entropy plus decay / 2 times their squared length."""
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = nn.functional.cross_entropy(layer(x), y) + decay / 2 * layer.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return layer.requires_grad_(False)
