"""Units are the branches of a residual network."""

from itertools import pairwise

from tests import tiny_transformer as tiny
from tvmq.quantize.units import units


def never(name: str) -> bool:
    return False


def is_linear(name: str) -> bool:
    return tiny.nodes().by_name[name].kind == "linear"


def test_every_branch_and_the_head_is_a_unit():
    found = units(tiny.canonical()["main"], is_linear, goes_on={"head"}.__contains__)
    inside = [[step.var.name for step in unit.steps] for unit in found]
    assert ["blocks.0.proj" in names for names in inside] == [True, False, False, False, False]
    assert {"blocks.1.fc1", "gelu.1", "blocks.1.fc2"} <= set(inside[3])
    assert inside[4][-1] == "head.bias"
    for before, after in pairwise(found):
        assert before.result.same_as(after.source)


def test_what_holds_nothing_that_counts_joins_the_next_unit():
    (whole,) = units(tiny.canonical()["main"], lambda name: name == "head", never)
    assert whole.steps[-1].var.name == "head"
    assert whole.source.name == "x"
