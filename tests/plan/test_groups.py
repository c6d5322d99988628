import pytest
import torch
from torch import nn

from tests import tiny_transformer
from tvmq.errors import UsageError
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import precision_of
from tvmq.plan.groups import SiteGroup, site_groups
from tvmq.plan.nodes import Nodes, index
from tvmq.spec import W8A8, Precision

CANDIDATES = (Precision(4, 8), Precision(3, 8), Precision(4, 6))


def grouped(nodes: Nodes, **options) -> dict[str, SiteGroup]:
    plan = assign_precisions(nodes, "17", **options)
    return {group.name: group for group in site_groups(nodes, plan, CANDIDATES)}


class Residual(nn.Module):
    """A block with a projection on its short arm, one without, and a depthwise product before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.down = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.c, self.d = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.down(x) + self.b(nn.functional.silu(self.a(x))))
        x = torch.relu(x + self.d(torch.relu(self.c(x))))
        return self.head(x.mean((2, 3)))


def test_queries_keys_and_values_share_a_precision_and_tables_follow_their_product():
    groups = grouped(tiny_transformer.nodes())
    assert groups["blocks.1.qkv"].sites == tuple(f"blocks.1.qkv.{name}" for name in "qkv")
    assert groups["blocks.0.fc1"].sites == ("blocks.0.fc1", "gelu.0")
    assert groups["blocks.1"].choices == ("w8a8", "w8a6", "float")
    assert groups["blocks.1.fc2"].choices == ("w8a8", "w4a8", "w3a8", "w4a6", "float")
    # What reads the model's input, what makes its output, and norms: 8 bits or float.
    whole = {name for name, group in groups.items() if group.choices == ("w8a8", "float")}
    assert whole == {"blocks.0.qkv", "head", "norm", *(f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2))}
    assert len(groups) == 2 * 7 + 2


def test_residual_arms_and_readers_of_one_value_are_tied():
    example = (torch.zeros(1, 3, 8, 8),)
    nodes = index(canonicalize(import_model(Residual().eval(), example)))
    groups = grouped(nodes)
    # a and down read one value; down and b make one sum; silu is a's; but x + d(...) ties d to nothing.
    tied = next(group for group in groups.values() if "a" in group.sites)
    assert set(tied.sites) == {"a", "b", "down", "silu.0", "relu.1"}
    assert tied.choices == ("w8a8", "w4a8", "w3a8", "w4a6", "float")
    assert groups["c"].sites == ("c", "relu.2")
    assert groups["d"].sites == ("d", "relu.3", "mean.0")
    assert groups["stem"].choices == ("w8a8", "float")
    every = [site for group in groups.values() for site in group.sites]
    plan = assign_precisions(nodes, "17")
    assert sorted(every) == sorted(site.site for site in plan.sites if site.precision)


def test_what_stays_in_float_anyway_is_in_no_group():
    groups = grouped(tiny_transformer.nodes(), ignored=["*.qkv.q", "norm"])
    assert "norm" not in groups
    assert groups["blocks.0.qkv"].sites == ("blocks.0.qkv.k", "blocks.0.qkv.v")


def test_names_of_precisions():
    assert (precision_of("float"), precision_of("w8a8"), precision_of("w3a8")) == (
        None,
        W8A8,
        Precision(3, 8),
    )
    with pytest.raises(UsageError, match="bits='w9': no widths are called that"):
        precision_of("w9")
