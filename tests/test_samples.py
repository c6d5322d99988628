"""A batch is cut into samples where that is wanted and computes the same."""

from __future__ import annotations

import pytest
import torch
import tvm
from torch import nn

from tvmq.quantizer import canonical
from tvmq.samples import cut, joined

CALIBRATION = list(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    return canonical(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (CALIBRATION[0],))


def test_a_batch_is_cut(module: tvm.IRModule) -> None:
    one, batches, count = cut(module, CALIBRATION)
    assert count == 4
    assert [int(d) for d in one["main"].params[0].ty.shape] == [1, 8]
    assert [len(batch[0]) for batch in batches] == [1] * 12
    assert torch.equal(joined(batches, 4)[0], CALIBRATION[0])
    assert len(joined(batches[:3], 5)[0]) == 5


class Mixing(nn.Module):
    """Samples of a batch are mixed, by an operator whose shapes do not tell."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(8, 8), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.linear(x)
        if self.how == "flip":
            return made.flip(0)
        return made.softmax(0) if self.how == "softmax" else made.cumsum(0)


@pytest.mark.parametrize("how", ["flip", "softmax", "cumsum"])
def test_samples_that_are_mixed_stay_together_even_if_the_data_do_not_show_it(how: str) -> None:
    first, second = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    palindrome = [torch.cat([first, second, second, first])] * 2
    mixing = canonical(Mixing(how).eval(), (palindrome[0],))
    assert cut(mixing, palindrome)[::2] == (mixing, 1)
