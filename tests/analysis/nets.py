"""A net of two linears for the tests of analyses, and what they find of it and of the transformer."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

import tvmq
from tests import tiny_transformer
from tvmq.analysis.records import Analysis, SiteError

WIDTH = 48


class Two(nn.Module):
    """y = W2 relu(W1 x + b1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@cache
def two() -> Two:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Two().eval()


def samples(count: int = 6, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 20, WIDTH)).astype(np.float32) for _ in range(count)]


@cache
def small() -> Analysis:
    return tvmq.analyze(two(), example_inputs=(torch.zeros(1, 20, WIDTH),), calibration=samples())


@cache
def transformer() -> Analysis:
    given = {"calibration": tiny_transformer.inputs(), "held_out": tiny_transformer.inputs(7)[4:]}
    return tvmq.analyze(tiny_transformer.transformer(), example_inputs=tiny_transformer.example(), **given)


def site(found: Analysis, name: str) -> SiteError:
    return next(each for each in found.sites if each.site == name)
