import pytest

from tvmq.formats import QuantParams


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype"), [(0.0, 0, "int8"), (0.1, 128, "int8"), (0.1, -1, "uint8")]
)
def test_numbers_that_are_no_storage_are_refused(scale, zero_point, dtype):
    with pytest.raises(ValueError, match=f"no {dtype} has scale {scale} and zero point {zero_point}"):
        QuantParams(scale, zero_point, dtype)
