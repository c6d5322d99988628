import json

import pytest

from tests import tiny_program
from tvmq.errors import UsageError
from tvmq.spec import (
    Coverage,
    CoverageRow,
    Description,
    Precision,
    SitePlan,
    TensorSpec,
)


def test_a_description_survives_json():
    before = tiny_program.description(("avx2",))
    assert Description.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_float_site_has_no_precision():
    plan = SitePlan("head", "linear", None, "ignored by the user")
    assert SitePlan.from_json(plan.to_json()) == plan
    assert plan.to_json()["precision"] is None


def test_bits_outside_the_kernels_are_refused():
    assert str(Precision(4, 8)) == "w4a8"
    with pytest.raises(UsageError, match=r"plan\[0\]: w9a8 is outside"):
        Precision.from_json({"weight_bits": 9, "activation_bits": 8}, "plan[0]")


def test_coverage_counts_multiply_accumulates():
    rows = (CoverageRow("a", "linear", True, "", 300), CoverageRow("b", "conv2d", False, "ignored", 100))
    assert Coverage(rows).macs_integer_fraction == 0.75
    assert Coverage(rows).as_json()["sites_integer"] == 1
    assert Coverage(()).macs_integer_fraction == 1.0
    assert str(Coverage(rows)) == (
        "1 of 2 sites in integers, 75 % of the multiplications\n  float: b (conv2d): ignored"
    )


def test_a_tensor_says_its_size():
    spec = TensorSpec("x", (1, 3, 2), "float32")
    assert spec.nbytes == 24
    assert str(spec) == "x float32[1, 3, 2]"
