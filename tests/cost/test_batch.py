"""What decides whether a batch is computed sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvmq.cost.batch import sample_by_sample
from tvmq.passes.one_sample import one_sample
from tvmq.quantizer import canonical
from tvmq.target import load_profile

PROFILE = load_profile("x86_avx512_vbmi")


@pytest.mark.parametrize(
    ("threads", "samples", "wanted"), [(1, 8, True), (2, 8, True), (8, 2, False), (16, 64, True)]
)
def test_values_that_a_batch_pushes_out_of_the_cache_are_computed_by_samples(
    threads: int, samples: int, wanted: bool
) -> None:
    images = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Conv2d(64, 64, 1), nn.ReLU())))
    one = one_sample(canonical(images.eval(), (torch.zeros(2, 64, 64, 64),)))
    assert sample_by_sample(one, samples, PROFILE, threads) == wanted


@pytest.mark.parametrize("samples", [2, 64])
def test_weights_that_every_sample_would_fetch_again_are_fetched_once(samples: int) -> None:
    rows = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512))
    one = one_sample(canonical(rows.eval(), (torch.zeros(2, 512),)))
    assert not sample_by_sample(one, samples, PROFILE, 1)
