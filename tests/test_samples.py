"""A batch is cut into samples where that is wanted and computes the same."""

from __future__ import annotations

import pytest
import torch
import tvm
from torch import nn

from tvmq import samples
from tvmq.quantizer import canonical
from tvmq.samples import cut, joined

CALIBRATION = list(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    return canonical(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (CALIBRATION[0],))


def test_a_batch_is_cut_where_it_is_wanted(module: tvm.IRModule) -> None:
    one, batches, count = cut(module, CALIBRATION, lambda _one, samples: samples == 4)
    assert count == 4
    assert [int(d) for d in one["main"].params[0].ty.shape] == [1, 8]
    assert [len(batch[0]) for batch in batches] == [1] * 12
    assert torch.equal(joined(batches, 4)[0], CALIBRATION[0])
    assert len(joined(batches[:3], 5)[0]) == 5


def test_it_stays_where_it_is_not_wanted_or_computes_something_else(
    module: tvm.IRModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "TOLERANCE", -1.0)  # nothing is alike
    for wanted in (None, lambda *_: False, lambda *_: True):
        whole, batches, count = cut(module, CALIBRATION, wanted)
        assert (whole, count) == (module, 1)
        assert [len(batch[0]) for batch in batches] == [4] * 3
