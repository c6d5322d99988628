import json

import numpy as np
import pytest

from tvmq.errors import VerificationError
from tvmq.spec import ENTRY, OutputSpec, SiteTrace
from tvmq.verification import Verdict, Verification, same_bits

SITE = SiteTrace("fc", "linear", (4,), "int32")
ENTERED = SiteTrace("gelu.0.q", ENTRY, (4,), "uint8", False)
FLOAT = OutputSpec("output", (4,), "float32", ("softmax",), False)
CODES = np.array([0, 1, 2, 200], np.uint8)
VALUES = np.array([1, 2, 3, -100], np.float32)


def verdict(spec: SiteTrace | OutputSpec, found: np.ndarray, wanted: np.ndarray) -> Verification:
    result = Verdict("reference")
    result.values("it", spec, found, wanted)
    return result.result()


def test_integers_must_be_equal_bit_for_bit():
    x = np.array([1, 2, 3, 4], np.int32)
    assert verdict(SITE, x, x.copy()) == Verification("reference", 1, 0, ())
    wrong = verdict(SITE, x, np.array([1, 2, 4, 4], np.int32))
    assert not wrong.ok
    with pytest.raises(VerificationError, match="it: differs from the reference, the first of 1 out of 1"):
        wrong.require()


@pytest.mark.parametrize(
    ("spec", "wanted", "off_by", "ok"),
    [
        (ENTERED, CODES, 1, True),  # a code beside the right one, after float operations
        (ENTERED, CODES, 2, False),
        (FLOAT, VALUES, 0.009, True),  # 1e-4 of the largest
        (FLOAT, VALUES, 0.011, False),
        (FLOAT, VALUES, np.nan, False),
    ],
)
def test_float_operations_have_a_tolerance(spec, wanted, off_by, ok):
    found = wanted.copy()
    found[1] += np.asarray(off_by, wanted.dtype)
    result = verdict(spec, found, wanted)
    assert result.ok == ok
    assert (result.sites, result.outputs) == (0, 0)  # none counts as compared bit for bit
    assert [difference.name for difference in result.inexact] == ["it"]


def test_checksums_bind_only_what_is_portable():
    result = Verdict("checksums")
    result.checksum("fc", SITE, True)
    result.checksum("late", SiteTrace("late", "linear", (4,), "int32", False), False)
    result.checksum("output 0", FLOAT, False)
    found = result.result()
    assert (found.ok, found.sites) == (True, 1)
    assert [(d.name, d.largest) for d in found.inexact] == [("late", None), ("output 0", None)]
    result.checksum("fc2", SITE, False)
    assert result.result().mismatches == ("fc2",)


def test_same_bits_is_stricter_than_equal():
    zero = np.zeros(2, np.float32)
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.astype(np.float64))
    assert not same_bits(zero, zero[None])
    assert same_bits(np.array([np.nan]), np.array([np.nan]))


def test_a_verification_survives_json():
    found = verdict(FLOAT, VALUES, VALUES)
    assert Verification.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_index_that_floats_decided_must_be_the_same():
    spec = SiteTrace("argmax.0", ENTRY, (2,), "int64", False)
    for off_by, ok in ((0, True), (1, False)):
        verdict = Verdict("reference")
        verdict.values("argmax.0", spec, np.array([3, 7 + off_by]), np.array([3, 7]))
        assert verdict.result().ok is ok
