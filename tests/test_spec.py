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


@pytest.mark.parametrize(("bits", "name"), [(8, "w8a8"), ("6", "w6a6"), ("w2a3", "w2a3"), ("w5a8", "w5a8")])
def test_bits_have_short_names(bits, name):
    assert str(Precision.of(bits)) == name


@pytest.mark.parametrize("bits", [2, 9, 16, "", "w1a8", "w4a2", "w4", "w44a8", "W4A8", True, None, 4.0, "٤"])
def test_bits_that_no_kernel_has_are_refused_with_those_that_it_has(bits):
    with pytest.raises(UsageError, match=r"no widths are called that; pass 3 to 8 for .* as in \"w4a8\""):
        Precision.of(bits)


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
