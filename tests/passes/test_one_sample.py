"""The model of one sample: shapes lose the batch, constants what they repeat; what mixes samples is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from tvmq.passes.one_sample import batch_of, one_sample
from tvmq.passes.rebuild import bindings


def test_rows_tokens_and_windows_of_a_batch_become_those_of_a_sample() -> None:
    token, weight = np.ones((1, 1, 8), "float32"), np.ones((8, 2), "float32")
    windows = np.array([[1, 0], [2, 2], [4, 3], [5, 5]])  # of two samples with three rows each

    def module(samples: int) -> Any:
        rows, indices = relax.const(token), relax.const(windows[: 2 * samples])
        bias = relax.const(np.tile(np.arange(4, dtype="float32").reshape(2, 2, 1), (samples, 1, 1)))
        w = relax.const(weight)

        @R.function
        def main(x: R.Tensor((samples, 2, 2, 4), "float32")):
            with R.dataflow():
                flat = R.reshape(x, R.shape([samples, 2, 8]))
                first = R.broadcast_to(rows, R.shape([samples, 1, 8]))
                tokens = R.concat((first, flat), axis=1)
                narrow = R.matmul(tokens, w)
                merged = R.reshape(narrow, R.shape([3 * samples, 2]))
                taken = R.take(merged, indices, axis=0)
                added = R.add(taken, bias)
                out = R.reshape(added, R.shape([samples, 4, 2]))
                R.output(out)
            return out

        return tvm.IRModule({"main": main})

    assert batch_of(module(2)) == 2
    one = one_sample(module(2))
    for found, wanted in zip(bindings(one["main"]), bindings(module(1)["main"]), strict=True):
        assert found.var.name == wanted.var.name
        tvm.ir.assert_structural_equal(found.value, wanted.value, map_free_vars=True)
    assert batch_of(one) == 1


@R.function
def mean_of_samples(x: R.Tensor((4, 4), "float32")):
    with R.dataflow():
        mean = R.mean(x, axis=[0], keepdims=True)
        out = R.subtract(x, mean)
        R.output(out)
    return out


@R.function
def transposed(x: R.Tensor((4, 8), "float32")):
    with R.dataflow():
        turned = R.permute_dims(x)
        out = R.reshape(turned, R.shape([4, 8]))
        R.output(out)
    return out


@pytest.mark.parametrize("function", [mean_of_samples, transposed])
def test_samples_that_meet_are_left_together(function: Any) -> None:
    mod = tvm.IRModule({"main": function})
    assert batch_of(mod) == 4
    assert one_sample(mod) is None


def test_a_constant_that_differs_from_sample_to_sample_stays() -> None:
    own = relax.const(np.arange(8, dtype="float32").reshape(4, 2, 1))

    @R.function
    def main(x: R.Tensor((4, 2, 3), "float32")):
        with R.dataflow():
            out = R.add(x, own)
            R.output(out)
        return out

    assert one_sample(tvm.IRModule({"main": main})) is None


def halves_multiplied(samples: int, axis: int) -> Any:
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((samples, 6, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            halves = builder.emit(relax.op.split(x, 2, axis))
            first, second = (builder.emit(relax.TupleGetItem(halves, at)) for at in (0, 1))
            out = builder.emit_output(relax.op.multiply(first, second))
        builder.emit_func_output(out)
    return builder.get()


def test_channels_may_be_split_and_samples_not() -> None:
    one = one_sample(halves_multiplied(2, 1))
    for found, wanted in zip(bindings(one["main"]), bindings(halves_multiplied(1, 1)["main"]), strict=True):
        tvm.ir.assert_structural_equal(found.value, wanted.value, map_free_vars=True)
        tvm.ir.assert_structural_equal(found.var.ty, wanted.var.ty)
    assert one_sample(halves_multiplied(2, 0)) is None
