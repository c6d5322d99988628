from collections import defaultdict

import numpy as np
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer
from tests.strategies import ModuleBuilder
from tvmq.plan.formats import Formats, swallowed, value_formats
from tvmq.plan.nodes import index
from tvmq.spec import Precision

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


FEW = Precision(5, 4)
LOW = value_formats(NODES, lambda name: True, dict.fromkeys(NODES.by_name, FEW))


def test_products_and_attention_read_few_bits_and_tables_eight():
    bits = {name: fmt.bits for name, fmt in LOW.values.items()}
    assert {bits[f"blocks.0.qkv.{name}.bias"] for name in "qkv"} == {4}
    assert bits["blocks.0.norm1"] == bits["gelu.0"] == bits["blocks.0"] == 4
    assert bits["blocks.0.fc1.bias"] == 8  # the table's input
    assert {name: fmt.dtype for name, fmt in LOW.values.items()} == {
        name: fmt.dtype for name, fmt in FORMATS.values.items()
    }
    assert set(LOW.weight_bits.values()) == {5}
    assert LOW.weight_bits.keys() == {name for name, node in NODES.by_name.items() if node.kind == "linear"}


def test_the_most_bits_that_a_reader_asks_for_are_stored():
    own = {**dict.fromkeys(NODES.by_name, FEW), "blocks.0.qkv.q": Precision(8, 6)}
    formats = value_formats(NODES, lambda name: True, own)
    assert formats.values["blocks.0.norm1"].bits == 6
    assert formats.bits_read(NODES, "blocks.0.norm1") == 6
    assert formats.weight_bits["blocks.0.qkv.q"] == 8


def formats_of(build) -> Formats:
    """Return the formats of a function of x [1, 8, 6, 6] whose products all have 4 bits."""
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 8, 6, 6), "float32"))
    nodes = index(make.module([x], build(make, x)))
    return value_formats(nodes, lambda name: True, dict.fromkeys(nodes.by_name, Precision(4, 4)))


def conv(make: ModuleBuilder, name: str, x: relax.Var) -> relax.Var:
    return make.bind(name, op.nn.conv2d(x, make.constant(8, 8, 3, 3), padding=1))


def bits_of(formats: Formats) -> dict[str, tuple[str, int]]:
    return {name: (fmt.dtype, fmt.bits) for name, fmt in formats.values.items()}


def test_a_pooling_of_the_largest_stores_what_is_asked_of_its_result():
    def build(make, x):
        pooled = make.bind("pool", op.nn.max_pool2d(make.bind("relu", op.nn.relu(conv(make, "a", x))), 2, 2))
        return conv(make, "b", pooled)

    assert bits_of(formats_of(build)) == {"x": ("uint8", 4), "relu": ("uint8", 4), "pool": ("uint8", 4)}


def test_the_copy_of_a_trunk_has_few_bits_and_an_output_eight():
    def build(make, x):
        a = make.bind("a.relu", op.nn.relu(conv(make, "a", x)))
        total = make.bind("add", op.add(a, conv(make, "b", a)))
        return relax.Tuple([conv(make, "c", total), a])

    formats = formats_of(build)
    assert bits_of(formats) == {"x": ("uint8", 4), "a.relu": ("int16", 4), "add": ("int16", 4)}

    def returned(make, x):
        a = conv(make, "a", x)
        return relax.Tuple([conv(make, "b", a), a])

    assert bits_of(formats_of(returned)) == {"x": ("uint8", 4), "a": ("uint8", 8)}
