from collections import defaultdict

from tests import tiny_transformer
from tvmq.plan.formats import swallowed, value_formats

NODES, FORMATS = tiny_transformer.nodes(), tiny_transformer.formats()


def test_consumers_decide_how_a_value_is_stored():
    stored = {name: fmt.dtype for name, fmt in FORMATS.values.items()}
    assert stored["x"] == stored["add.4"] == "int16"  # the residual trunk
    assert stored["blocks.0.norm1"] == stored["gelu.0"] == stored["blocks.0"] == "uint8"  # read by linears
    assert {stored[f"blocks.0.qkv.{name}.bias"] for name in "qkv"} == {"int8"}  # read by attention
    assert "head.bias" not in stored  # the output: float from the accumulator


def test_values_joined_by_adds_share_one_region():
    regions = defaultdict(set)
    for name, fmt in FORMATS.values.items():
        regions[fmt.region].add(name)
    assert regions["x"] == {"x", "add.4", "add.7", "add.12", "add.15"}
    assert all(len(members) == 1 for region, members in regions.items() if region != "x")


def test_accumulators_are_never_stored():
    fused = swallowed(NODES, FORMATS.integer)
    assert fused["blocks.0.proj"] == "blocks.0.proj.bias"
    assert fused["blocks.0.proj.bias"] == "add.4"
    assert not fused.keys() & FORMATS.values.keys()


def test_a_float_site_stores_nothing_for_itself():
    formats = value_formats(NODES, lambda name: name != "blocks.0.fc1")
    assert not {"blocks.0.fc1", "gelu.0"} & formats.integer  # a table of a float input would not pay
    assert "blocks.0.norm2" in formats.values  # still computed in integers: stored, then made float
    assert "blocks.0.fc1.bias" not in formats.values
    assert formats.values["gelu.0"].dtype == "uint8"  # fc2 quantizes it again
    nothing = value_formats(NODES, lambda name: False)
    assert (nothing.values, nothing.integer) == ({}, frozenset())
