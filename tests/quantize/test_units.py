"""Units are the branches of a residual network."""

from itertools import pairwise

import torch
from torch import nn

from tests import tiny_transformer as tiny
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.plan.nodes import index
from tvmq.quantize.units import units


def never(name: str) -> bool:
    return False


def is_linear(name: str) -> bool:
    return tiny.nodes().by_name[name].kind == "linear"


def is_stored(name: str) -> bool:
    return name in tiny.formats().values


def test_every_branch_and_the_head_is_a_unit():
    found = units(tiny.canonical()["main"], is_linear, {"head"}.__contains__, is_stored)
    inside = [[step.var.name for step in unit.steps] for unit in found]
    assert ["blocks.0.proj" in names for names in inside] == [True, False, False, False, False]
    assert {"blocks.1.fc1", "gelu.1", "blocks.1.fc2"} <= set(inside[3])
    assert inside[4][-1] == "head.bias"
    for before, after in pairwise(found):
        assert before.results[-1].same_as(after.source)


def test_what_holds_nothing_that_counts_joins_the_next_unit():
    (whole,) = units(tiny.canonical()["main"], lambda name: name == "head", never, is_stored)
    assert whole.steps[-1].var.name == "head"
    assert whole.source.name == "x"


class Masked(nn.Module):
    """Two blocks that read a mask, and a head after each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.early, self.late = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown = mask.unsqueeze(-1).float()
        x = x + self.first(x) * shown
        early = self.early(x)
        x = x + self.second(x) * shown
        return early, self.late(x)


def test_masks_and_early_outputs_do_not_keep_a_unit_open():
    example = (torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))
    mod = canonicalize(import_model(Masked().eval(), example_inputs=example))
    nodes = index(mod)
    stored = {"x", *(name for name in nodes.by_name if name.endswith(("first", "early", "second", "late")))}
    found = units(mod["main"], lambda name: nodes.by_name[name].kind == "linear", never, stored.__contains__)
    assert len(found) >= 2
    assert all(str(other.ty.dtype) in ("bool", "float32") for unit in found for other in unit.others)
    assert any(unit.others for unit in found)
    early = next(unit for unit in found if any("early" in step.var.name for step in unit.steps))
    assert len(early.results) == 2
