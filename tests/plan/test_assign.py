import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer
from tests.strategies import ModuleBuilder
from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.plan.assign import FLOAT_INPUT, W8A8, assign_precisions, coverage_of
from tvmq.plan.formats import value_formats
from tvmq.plan.nodes import index
from tvmq.spec import Coverage


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
        (lambda x: op.exp(x), "f", "exp has no integer kernel yet"),
        (lambda x: op.sigmoid(x), "f", FLOAT_INPUT),
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


def test_strict_names_what_would_stay_float():
    mod, nodes = tiny_transformer.canonical(), tiny_transformer.nodes()
    plan = assign_precisions(nodes, "17", ignored=["head"])
    with pytest.raises(UnsupportedModelError, match=r"strict: 1 of 22 .* head \(matches `ignored`\)"):
        coverage_of(mod, plan, tiny_transformer.formats().integer, strict=True)
