"""Packed weights lie as the kernel reads them, and what can be read where it lies is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule.conv_cases import geometry_of, spec_of
from tests.schedule.isa_cases import ISA
from tvmq.schedule.conv_spec import buffers, pack_rows, pack_taps, supports, unpack_weight


def test_a_step_holds_four_weights_of_sixteen_outputs():
    weight = np.arange(2 * 3 * 3 * 20).astype(np.int8).reshape(2, 3, 3, 20)
    rows, taps = pack_rows(weight), pack_taps(weight)
    assert (rows.shape, taps.shape) == ((2, 2, 3, 64), (2, 6, 1, 64))
    # outputs 16 to 19, the second row of the kernel, its bytes 4 to 7, of output 17
    np.testing.assert_array_equal(rows[1, 1, 1, 4:8], weight[1].reshape(9, 20)[4:8, 17])
    np.testing.assert_array_equal(taps[0, 4, 0, 8:12], [*weight[1, 1, :, 2], 0])
    for packed in (rows, taps):
        np.testing.assert_array_equal(unpack_weight(packed, weight.shape), weight)


@pytest.mark.parametrize(
    ("channels", "fields", "direct", "flat"),
    [
        (8, {"kernel": 1}, True, True),
        (8, {"kernel": 1, "stride_rows": 2}, True, False),
        (6, {"kernel": 1}, False, False),  # the last step would read past the pixel
        (8, {"kernel": 3}, True, False),
        (8, {"kernel": 3, "left": 1}, False, False),
        (4, {"kernel": 3, "dilation_columns": 2}, True, False),
    ],
)
def test_what_is_read_where_it_lies(channels, fields, direct, flat):
    spec = spec_of(geometry_of(channels, 20, **fields), "trunk")
    assert (spec.direct, spec.flat) == (direct, flat)
    assert supports(spec) is None
    assert list(buffers(spec, ISA["sse4"])) == ["x", "weight", "bias", "shift", "residual", "out", "copy"]
