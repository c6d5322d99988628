"""A band holds the rows that its lines see, with the padding around them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.conv_cases import geometry_of
from tvmq.schedule.padded_band import band_rows, padded_band, row_size


@pytest.mark.parametrize(("channels", "columns"), [(1, 1), (3, 5), (17, 9), (64, 2)])
@pytest.mark.parametrize("first_line", [0, 1, 2])
@pytest.mark.parametrize("less", [0, 128])
def test_rows_inside_are_copied_and_the_rest_is_filled(channels, columns, first_line, less):
    padding = {"top": 2, "left": 1, "bottom": 1, "right": 2}
    g = geometry_of(channels, 8, 3, rows=6, columns=columns, stride_rows=2, **padding)
    size = band_rows(g, 2) * row_size(g)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((2 * 6 * columns, channels), "uint8"))
        out = T.arg("out", T.buffer((size,), "uint8"))
        with T.sblock("root"):
            T.reads(x[0 : 2 * 6 * columns, 0:channels])
            T.writes(out[0:size])
            band = padded_band(g, x, 9, T.int32(1), T.int32(first_line), 2, flipped=bool(less))
            with T.serial(size) as i:
                T.buffer_store(out, band[i], [i])
    kernel = tvm.compile(tvm.IRModule({"main": builder.get()}), tvm.target.Target({"kind": "llvm"}))
    image = np.random.default_rng(0).integers(0, 256, (2, 6, columns, channels)).astype(np.uint8)
    found = tvm.runtime.tensor(np.zeros(size, np.uint8))
    kernel(tvm.runtime.tensor(image.reshape(-1, channels)), found)
    padded = np.pad(image[1], ((2, 4), (1, 2), (0, 0)), constant_values=9)
    wanted = padded[2 * first_line : 2 * first_line + band_rows(g, 2)]
    np.testing.assert_array_equal(found.numpy(), wanted.ravel() ^ less)
