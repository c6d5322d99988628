"""Inputs may start anywhere; what kernels hand to each other starts at a multiple of 64 bytes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import relax as R
from tvm.script import tirx as T

from tests import tiny_transformer
from tvmq.runtime import aligned_empty
from tvmq.schedule.unaligned_inputs import UnalignedInputs


@tvm.script.ir_module
class Before:
    @T.prim_func(private=True, s_tir=True)
    def first(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
        for i in range(64):
            with T.sblock("first"):
                v = T.axis.spatial(64, i)
                y[v] = x[v] + T.float32(1)

    @T.prim_func(private=True, s_tir=True)
    def second(x: T.Buffer((64,), "float32"), y: T.Buffer((8, 8), "float32"), z: T.Buffer((64,), "float32")):
        for i in range(64):
            with T.sblock("second"):
                v = T.axis.spatial(64, i)
                z[v] = x[v] + y[v // 8, v % 8]

    @R.function
    def main(x: R.Tensor((8, 8), "float32")) -> R.Tensor((64,), "float32"):
        with R.dataflow():
            flat = R.reshape(x, R.shape([64]))
            one = R.call_tir(Before.first, (flat,), out_ty=R.Tensor((64,), "float32"))
            two = R.call_tir(Before.second, (one, x), out_ty=R.Tensor((64,), "float32"))
            R.output(two)
        return two


@tvm.script.ir_module
class After:
    @T.prim_func(private=True, s_tir=True)
    def first(x: T.Buffer((64,), "float32", align=4), y: T.Buffer((64,), "float32")):
        for i in range(64):
            with T.sblock("first"):
                v = T.axis.spatial(64, i)
                y[v] = x[v] + T.float32(1)

    @T.prim_func(private=True, s_tir=True)
    def second(
        x: T.Buffer((64,), "float32"), y: T.Buffer((8, 8), "float32", align=4), z: T.Buffer((64,), "float32")
    ):
        for i in range(64):
            with T.sblock("second"):
                v = T.axis.spatial(64, i)
                z[v] = x[v] + y[v // 8, v % 8]

    @R.function
    def main(x: R.Tensor((8, 8), "float32")) -> R.Tensor((64,), "float32"):
        with R.dataflow():
            flat = R.reshape(x, R.shape([64]))
            one = R.call_tir(After.first, (flat,), out_ty=R.Tensor((64,), "float32"))
            two = R.call_tir(After.second, (one, x), out_ty=R.Tensor((64,), "float32"))
            R.output(two)
        return two


def test_kernels_are_promised_no_more_of_inputs_than_aligned_elements():
    tvm.ir.assert_structural_equal(UnalignedInputs()(Before), After)


@pytest.mark.parametrize("start", [4, 16, 60])
def test_a_model_gives_the_same_bits_wherever_its_input_starts(start: int):
    model, (wanted,) = tiny_transformer.model(), tiny_transformer.inputs(1)
    place = aligned_empty((wanted.nbytes + 64,), "uint8")
    x = place[start:][: wanted.nbytes].view("float32").reshape(wanted.shape)
    x[...] = wanted
    np.testing.assert_array_equal(model(x), model(wanted))
