import numpy as np
import pytest

from tvmq.formats import QuantParams, bits_of


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype"), [(0.0, 0, "int8"), (0.1, 128, "int8"), (0.1, -1, "uint8")]
)
def test_numbers_that_are_no_storage_are_refused(scale, zero_point, dtype):
    with pytest.raises(ValueError, match=f"no {dtype} has scale {scale} and zero point {zero_point}"):
        QuantParams(scale, zero_point, dtype)


@pytest.mark.parametrize(
    ("dtype", "limits", "codes"),
    [
        ("uint8", None, ()),
        ("uint8", None, (3, 3)),
        ("uint8", None, (9, 3)),
        ("uint8", (0, 15), (0, 16)),
        ("int8", None, (0, 1)),
    ],
)
def test_codes_that_are_none_are_refused(dtype, limits, codes):
    with pytest.raises(ValueError, match="no codes of"):
        QuantParams(0.1, 3, dtype, limits, codes)


def test_codes_are_told():
    assert QuantParams(0.1, 3, "uint8", codes=(0, 1, 7, 255)).stored_as == "uint8, 4 codes"


@pytest.mark.parametrize("limits", [(-1, 5), (0, 256), (9, 8)])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(ValueError, match=f"no uint8 lies from {limits[0]} to {limits[1]}"):
        QuantParams(0.1, 3, "uint8", limits)


def test_limits_of_all_that_a_dtype_holds_say_nothing():
    plain = QuantParams(0.1, 3, "uint8")
    assert QuantParams(0.1, 3, "uint8", (0, 255)) == plain
    assert (plain.low, plain.high, plain.stored_as) == (0, 255, "uint8")
    few = plain.limited(0, 15)
    assert few != plain
    assert few.aligned(plain)
    assert (few.low, few.high) == few.limits == (0, 15)


@pytest.mark.parametrize(
    ("asked", "found"), [((3, 9), (3, 9)), ((-5, 4), (0, 4)), ((20, 30), (15, 15)), ((-9, -2), (0, 0))]
)
def test_limits_only_become_narrower(asked, found):
    assert QuantParams(0.1, 3, "uint8", (0, 15)).limited(*asked).limits == found


@pytest.mark.parametrize(
    ("dtype", "limits", "name"),
    [
        ("uint8", (0, 15), "uint4"),
        ("int8", (-8, 7), "int4"),
        ("int8", (-7, 7), "int8"),
        ("uint8", (3, 18), "uint8"),
    ],
)
def test_few_bits_are_named_where_they_hold_all_codes(dtype, limits, name):
    params = QuantParams(0.25, 3, dtype, limits)
    assert params.stored_as == name
    assert QuantParams.from_json(params.to_json()) == params
    assert params.real_limits == (0.25 * (limits[0] - 3), 0.25 * (limits[1] - 3))


@pytest.mark.parametrize(
    ("values", "bits"),
    [([], 2), ([0], 2), ([1, -2], 2), ([2], 3), ([-3], 3), ([7, -8], 4), ([-9], 5), ([-128], 8), ([127], 8)],
)
def test_bits_are_those_of_twos_complement(values: list[int], bits: int):
    assert bits_of(np.array(values, np.int8)) == bits
