import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer
from tests.passes.qdq_graphs import HIDDEN, NORMED, TRUNK, QdqBuilder, float_input
from tests.strategies import ModuleBuilder
from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.passes.lower_integer import LowerInteger
from tvmq.plan.assign import (
    COARSE,
    FLOAT_INPUT,
    STORAGE,
    achieved,
    as_stored,
    assign_precisions,
    coverage_of,
)
from tvmq.plan.formats import value_formats
from tvmq.plan.nodes import index
from tvmq.spec import W8A8, Coverage, CoverageRow, Precision


def covered(mod, **options) -> Coverage:
    nodes = index(mod)
    plan = assign_precisions(nodes, "17", **options)
    planned = {site.site for site in plan.sites if site.precision}
    return coverage_of(mod, plan, value_formats(nodes, planned.__contains__).integer)


def test_every_site_of_a_transformer_gets_8_bits():
    plan = assign_precisions(tiny_transformer.nodes(), "17")
    assert plan.module_hash == "17"
    assert {site.precision for site in plan.sites} == {W8A8}
    assert len(plan.sites) == 22


def test_fewer_bits_leave_both_ends_tables_and_norms_at_eight():
    plan = assign_precisions(tiny_transformer.nodes(), "17", bits=Precision(4, 6))
    whole = {site.site: site.reason for site in plan.sites if site.precision == W8A8}
    assert whole.pop("head") == "integer kernel; it makes the model's output, which keeps 8 bits"
    first = {whole.pop(f"blocks.0.qkv.{name}") for name in "qkv"}
    assert first == {"integer kernel; it reads the model's input, which keeps 8 bits"}
    assert set(whole.values()) == {"integer kernel"}
    assert all(name.endswith(("norm", "norm1", "norm2")) or name.startswith("gelu") for name in whole)
    few = {site.kind for site in plan.sites if site.precision == Precision(4, 6)}
    assert few == {"linear", "attention"}


def test_the_plan_says_what_is_read_not_what_was_asked_for():
    nodes = tiny_transformer.nodes()
    own = {**dict.fromkeys(nodes.by_name, Precision(4, 4)), "blocks.1.qkv.v": W8A8}
    plan = assign_precisions(nodes, "17", bits=Precision(4, 4))
    stored_plan = as_stored(plan, nodes, value_formats(nodes, lambda name: True, own))
    stored = {site.site: site for site in stored_plan.sites}
    for name in "qk":
        assert stored[f"blocks.1.qkv.{name}"].precision == Precision(4, 8)
        assert stored[f"blocks.1.qkv.{name}"].reason.endswith("another reader of its input takes 8 bits")
    assert stored["blocks.1.fc1"].precision == Precision(4, 4)


def test_sites_have_bits_of_their_own_and_the_last_pattern_counts():
    nodes = tiny_transformer.nodes()
    bits = {"*": Precision(4, 8), "blocks.1.*": W8A8, "blocks.1.fc2": Precision(3, 8), "*.norm2": None}
    why = {"blocks.0.norm2": "0.3 ms slower in integers", "blocks.1.fc2": "it hardly matters"}
    plan = assign_precisions(nodes, "17", bits=bits, reasons=why, ignored=["blocks.0.fc1"])
    found = {site.site: site for site in plan.sites}
    assert found["blocks.0.proj"].precision == Precision(4, 8)
    assert found["blocks.1.proj"].precision == found["head"].precision == found["norm"].precision == W8A8
    assert found["blocks.1.fc2"].precision == Precision(3, 8)
    assert found["blocks.1.fc2"].reason == "it hardly matters"
    assert found["blocks.0.fc1"].reason == "matches `ignored`"
    assert [found[f"blocks.{i}.norm2"].precision for i in (0, 1)] == [None, None]
    assert found["blocks.0.norm2"].reason == "0.3 ms slower in integers"
    assert found["blocks.1.norm2"].reason == "its bits are given as float"
    with pytest.raises(UsageError, match=r"pattern 'blocks.7.\*': names no site"):
        assign_precisions(nodes, "17", bits={"blocks.7.*": None})


def test_patterns_keep_sites_in_float_and_must_match():
    coverage = covered(tiny_transformer.canonical(), ignored=["*.qkv.*", "norm"])
    left = {row.site: row.reason for row in coverage.rows if not row.integer}
    assert set(left.values()) == {"matches `ignored`"}
    assert set(left) == {f"blocks.{i}.qkv.{name}" for i in (0, 1) for name in "qkv"} | {"norm"}
    with pytest.raises(UsageError, match=r"pattern 'heat': names no site .*head"):
        covered(tiny_transformer.canonical(), ignored=["heat"])


@pytest.mark.parametrize(
    ("make_op", "site", "reason"),
    [
        (lambda x: op.nn.softmax(x), "f", "softmax outside of attention has no integer kernel yet"),
        (lambda x: op.image.resize2d(x, (8, 8)), "f", "interpolation has no integer kernel yet"),
        (lambda x: op.exp(x), "f", COARSE),
        (lambda x: op.sigmoid(x), "f", FLOAT_INPUT.format("a table of 256 values")),
        (lambda x: op.reshape(x, (1, 64)), None, ""),
    ],
)
def test_float_operations_are_counted_with_a_reason(make_op, site, reason):
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 4, 4), "float32"))
    coverage = covered(make.module([x], make.bind("f", make_op(x))))
    assert [(row.site, row.integer, row.reason) for row in coverage.rows] == (
        [(site, False, reason)] if site else []
    )


@pytest.mark.parametrize("read_by_product", [True, False])
def test_a_function_too_steep_for_8_bits_is_a_table_where_a_product_reads_it(read_by_product):
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    square = make.bind("square", op.square(make.linear("fc", x, 8)))
    flat = make.bind("flat", op.reshape(square, (4, 8)))
    result = make.linear("fc2", flat, 8) if read_by_product else make.bind("soft", op.nn.softmax(flat))
    rows = {row.site: (row.integer, row.reason) for row in covered(make.module([x], result)).rows}
    assert rows["square"] == ((True, "integer kernel") if read_by_product else (False, COARSE))


def test_strict_names_what_would_stay_float():
    mod, nodes = tiny_transformer.canonical(), tiny_transformer.nodes()
    plan = assign_precisions(nodes, "17", ignored=["head"])
    with pytest.raises(UnsupportedModelError, match=r"strict: 1 of 22 .* head \(matches `ignored`\)"):
        coverage_of(mod, plan, tiny_transformer.formats().integer, strict=True)


@pytest.mark.parametrize(
    ("shape", "axes", "reason"),
    [
        ((2, 3, 8), [-2, -1], "layer norm over other axes than the last has no integer kernel yet"),
        ((2, 8192), [1], "layer norm over 8192 channels, of which 8191 fit 64-bit sums"),
        ((2, 8191), [1], "integer kernel"),
    ],
)
def test_a_norm_that_no_kernel_computes_stays_float(shape, axes, reason):
    make = ModuleBuilder(np.random.default_rng(0))
    affine = [make.constant(*(shape[a] for a in axes)) for _ in range(2)]
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    mod = make.module([x], make.bind("norm", op.nn.layer_norm(x, *affine, axes=axes)))
    assert [row.reason for row in covered(mod).rows] == [reason]


def test_what_lowering_kept_in_integers_stays_in_the_coverage():
    plan = assign_precisions(tiny_transformer.nodes(), "17")
    planned = coverage_of(tiny_transformer.canonical(), plan, tiny_transformer.formats().integer)
    assert achieved(planned, LowerInteger()(tiny_transformer.qdq_module()), strict=True) == planned


def test_what_lowering_left_in_float_is_not_covered():
    make, x = QdqBuilder(), float_input(1, 3, 4, 4)
    up = op.nn.conv2d_transpose(make.stored("x", x, NORMED), make.weight((3, 2, 2, 2), 1), 2)
    up = make.stored("up", make.bind("up", up), HIDDEN)
    wide = make.stored("wide", make.bind("wide", op.nn.gelu(up)), TRUNK)
    norm = make.stored("norm", make.layer_norm("norm", make.stored("y", wide, NORMED), 0.3), NORMED)
    lowered = LowerInteger()(make.module([x], norm))
    kinds = {"up": "conv2d_transpose", "wide": "gelu", "norm": "layer_norm"}
    rows = tuple(CoverageRow(site, kind, True, "integer kernel", 0) for site, kind in kinds.items())
    found = achieved(Coverage(rows), lowered)
    assert {row.site: row.reason for row in found.rows if not row.integer} == {
        "wide": STORAGE["unary"],
        "norm": STORAGE[""],
    }
    with pytest.raises(UnsupportedModelError, match=r"strict: 2 of 3 sites would stay in float: wide \("):
        achieved(Coverage(rows), lowered, strict=True)
