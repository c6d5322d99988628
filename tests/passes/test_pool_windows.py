"""Which poolings and means have windows, and how what they read and give is stored."""

from __future__ import annotations

import pytest
from tvm import relax
from tvm.relax import op

from tvmq.passes.layouts import RowsLayout
from tvmq.passes.pool_windows import mean_layouts, window_of


def call_of(function, shape, *args, **options):
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    return relax.BlockBuilder().normalize(function(x, *args, **options))


IMAGE = (2, 6, 8, 12)


@pytest.mark.parametrize(
    ("call", "window", "size"),
    [
        (call_of(op.nn.max_pool2d, IMAGE, (3, 3), (2, 2), (1, 1)), (3, 3), (4, 6)),
        (call_of(op.nn.avg_pool2d, IMAGE, (2, 2), (2, 2)), (2, 2), (4, 6)),
        (call_of(op.nn.avg_pool2d, IMAGE, (3, 3), (1, 1), (1, 1), count_include_pad=True), (3, 3), (8, 12)),
        (call_of(op.nn.adaptive_avg_pool2d, IMAGE, (1, 1)), (8, 12), (1, 1)),
        (call_of(op.nn.adaptive_avg_pool2d, IMAGE, (4, 3)), (2, 4), (4, 3)),
        (call_of(op.mean, IMAGE, [2, 3]), (96, 1), (1, 1)),
        (call_of(op.mean, (2, 49, 6), [1]), (49, 1), (1, 1)),
    ],
)
def test_windows_of_one_size(call, window, size):
    found = window_of(call)
    assert found is not None
    assert ((found.kernel_rows, found.kernel_columns), (found.out_rows, found.out_columns)) == (window, size)
    assert (found.batch, found.channels, found.groups) == (2, 6, 6)


@pytest.mark.parametrize(
    "call",
    [
        call_of(op.nn.max_pool2d, IMAGE, (3, 3), (2, 2), ceil_mode=True),  # the last window is cut short
        call_of(op.nn.avg_pool2d, IMAGE, (3, 3), (1, 1), (1, 1)),  # borders count fewer pixels
        call_of(op.nn.max_pool2d, IMAGE, (2, 2), dilation=(2, 2)),
        call_of(op.nn.max_pool2d, IMAGE, (2, 2), layout="NHWC"),
        call_of(op.nn.adaptive_avg_pool2d, IMAGE, (3, 3)),
        call_of(op.mean, IMAGE, [0, 1]),
        call_of(op.mean, IMAGE, [1, 3]),
        call_of(op.mean, IMAGE),
    ],
)
def test_what_has_no_windows_of_one_size(call):
    assert window_of(call) is None


@pytest.mark.parametrize("keepdims", [True, False])
def test_a_mean_keeps_channels_where_they_are(keepdims):
    ones = (1, 1) if keepdims else ()
    first = mean_layouts(call_of(op.mean, IMAGE, [2, 3], keepdims=keepdims))
    assert first == (RowsLayout((2, 8, 12), 1, (6,)), RowsLayout((2, *ones), 1, (6,)))
    last = mean_layouts(call_of(op.mean, (2, 8, 12, 6), [1, 2], keepdims=keepdims))
    assert last == (RowsLayout((2, 8, 12), 3, (6,)), RowsLayout((2, *ones), 1 + len(ones), (6,)))
