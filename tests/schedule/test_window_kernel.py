"""Every pixel of the result is visited by every segment of its window, whatever the tiles and shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tests.schedule.conv_cases import geometry_of
from tests.schedule.pool import pool_of
from tvmq.schedule.conv_tiles import ConvDecision
from tvmq.schedule.float_conv_spec import FloatConvSpec, buffers
from tvmq.schedule.vectors import load, splat, store
from tvmq.schedule.window_kernel import WindowKernel


class Counts(WindowKernel):
    """Adds one per segment that starts with a number, not padding; x is all ones."""

    def _first_channel(self, group: Any) -> Any:
        return 0

    def _start(self, group: Any) -> None:
        for acc in self.acc:
            store(acc, 0, splat(0, "float32x16"))

    def _segment(self, group: Any, segment: Any, offset: Any) -> None:
        for number, acc in enumerate(self.acc):
            seen = self.source[offset + number // self.columns * self.stride]
            store(acc, 0, load(acc, 0, 16) + T.broadcast(seen, 16))

    def _store(self, row: Any, group: Any) -> None:
        for number, acc in enumerate(self.acc):
            place = (row + number // self.columns, (group + number % self.columns) * 16)
            store(self.arguments["out"], place, load(acc, 0, 16))


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize(
    "decision",
    [
        ConvDecision(pixel_tile=1, column_tile=1),
        ConvDecision(pixel_tile=3, column_tile=2, outer="rows", bands=2),
        ConvDecision(pixel_tile=2, column_tile=3, bands=4, parts=2, parallel=True),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"stride_rows": 2, "top": 1, "left": 2, "dilation_columns": 2}])
def test_every_pixel_is_visited_once_by_every_segment(fields, decision, unrolled):
    g = geometry_of(4, 80, 2, **fields)
    spec = FloatConvSpec(geometry=g)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        arguments = {name: T.arg(name, T.buffer(*kind)) for name, kind in buffers(spec).items()}
        kernel = Counts(spec, decision, arguments, sums="float32")
        kernel.unrolled = unrolled
        kernel.emit()
    built = tvm.compile(tvm.IRModule({"main": builder.get()}), tvm.target.Target({"kind": "llvm"}))
    shapes = [shape for shape, _ in buffers(spec).values()]
    tensors = [tvm.runtime.tensor(np.ones(shape, np.float32)) for shape in shapes]
    with pool_of(2):
        built(*tensors)
    inside = np.pad(np.ones((g.rows, g.columns)), ((g.top, g.bottom), (g.left, g.right)))
    taps = range(1 if spec.geometry.by_rows else 2)
    wanted = [
        [
            sum(
                inside[i * g.stride_rows + down, j + across * g.dilation_columns]
                for down in range(2)
                for across in taps
            )
            for j in range(g.out_columns)
        ]
        for i in range(g.out_rows)
    ]
    found = tensors[-1].numpy().reshape(g.batch, g.out_rows, g.out_columns, 80)
    np.testing.assert_array_equal(found, np.broadcast_to(np.array(wanted)[None, :, :, None], found.shape))
