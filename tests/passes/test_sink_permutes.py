"""Golden graphs, and the numbers, of what is moved before the way back to NCHW."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_untouched
from tvmq.passes.sink_permutes import SinkPermutes


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((2, 5, 7, 3), "float32"), y: R.Tensor((2, 5, 7, 3), "float32")) -> R.Tensor(
        (2, 5, 7, 3), "uint8"
    ):
        with R.dataflow():
            a = R.permute_dims(x, [0, 3, 1, 2])
            b = R.permute_dims(y, [0, 3, 1, 2])
            relu = R.nn.relu(a)
            total = R.add(relu, b)
            double = R.multiply(total, R.const(2.0, "float32"))
            pooled = R.nn.max_pool2d(double, (3, 3), (1, 1), (1, 1))
            levels = R.quantize(
                pooled, R.const(0.5, "float32"), R.const(3, "uint8"), axis=-1, out_dtype="uint8"
            )
            out = R.permute_dims(levels, [0, 2, 3, 1])
            R.output(out)
        return out


@I.ir_module
class After:
    @R.function
    def main(x: R.Tensor((2, 5, 7, 3), "float32"), y: R.Tensor((2, 5, 7, 3), "float32")) -> R.Tensor(
        (2, 5, 7, 3), "uint8"
    ):
        with R.dataflow():
            relu = R.nn.relu(x)
            total = R.add(relu, y)
            double = R.multiply(total, R.const(2.0, "float32"))
            pooled = R.nn.max_pool2d(double, (3, 3), (1, 1), (1, 1), layout="NHWC")
            out = R.quantize(pooled, R.const(0.5, "float32"), R.const(3, "uint8"), axis=-1, out_dtype="uint8")
            R.output(out)
        return out


@I.ir_module
class Ends:
    @R.function
    def main(
        x: R.Tensor((2, 5, 7, 4), "float32"),
        y: R.Tensor((2, 5, 7, 2), "float32"),
        z: R.Tensor((2, 6, 5, 7), "float32"),
    ):
        with R.dataflow():
            a = R.permute_dims(x, [0, 3, 1, 2])
            b = R.permute_dims(y, [0, 3, 1, 2])
            both = R.concat([a, b], axis=1)
            shifted = R.add(both, R.const(np.arange(6, dtype="float32").reshape(6, 1, 1)))
            means = R.mean(shifted, axis=[2, 3], keepdims=True)
            scaled = R.multiply(shifted, R.sigmoid(means))
            flat = R.reshape(means, (2, 6))
            most = R.max(scaled, axis=[1], keepdims=True)
            other = R.add(scaled, z)
            turned = R.permute_dims(scaled, [0, 1, 3, 2])
            pooled = R.nn.avg_pool2d(scaled, (2, 2), (2, 1), (0, 1), count_include_pad=True)
            sums = R.sum(scaled, axis=[2, 3])
            out = (flat, most, other, turned, pooled, sums)
            R.output(out)
        return out


def test_what_stands_between_two_permutes_does_without_them():
    after = SinkPermutes()(Before)
    tvm.ir.assert_structural_equal(after, After, map_free_vars=True)
    assert_untouched(after, SinkPermutes())


def test_numbers_stay_what_they_were():
    random = np.random.default_rng(0)
    for mod in (Before, Ends):
        shapes = [[int(n) for n in p.ty.shape] for p in mod["main"].params]
        arguments = [tvm.runtime.tensor(random.standard_normal(shape, "float32")) for shape in shapes]
        results = []
        for each in (mod, SinkPermutes()(mod)):
            machine = relax.VirtualMachine(tvm.compile(each, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
            found = machine["main"](*arguments)
            results.append([found] if isinstance(found, tvm.runtime.Tensor) else list(found))
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-6)


def test_only_what_wants_nchw_keeps_a_permute():
    text = SinkPermutes()(Ends).script()
    assert text.count("permute_dims") == 4  # most, other, turned and pooled
    assert "R.permute_dims(scaled, axes=[0, 3, 2, 1])" in text
