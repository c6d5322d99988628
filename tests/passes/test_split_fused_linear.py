import numpy as np
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.split_fused_linear import SplitFusedLinear

W, B = const(4, 12), const(12, seed=1)


def thirds(constant):
    return [relax.const(part.copy()) for part in np.split(constant.value.numpy(), 3, -1)]


def test_each_slice_gets_its_own_linear():
    (WQ, WK, WV), (BQ, BK, BV) = thirds(W), thirds(B)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")) -> R.Tensor((2, 2, 5, 2), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.add(lv, B)
                lv2 = R.reshape(lv1, R.shape([2, 5, 3, 2, 2]))
                lv3 = R.permute_dims(lv2, axes=[2, 0, 3, 1, 4])
                lv4 = R.take(lv3, R.const(0, "int64"), axis=0, mode="fast")
                lv5 = R.take(lv3, R.const(1, "int64"), axis=0, mode="fast")
                lv6 = R.take(lv3, R.const(2, "int64"), axis=0, mode="fast")
                lv7 = R.add(lv4, lv5)
                lv8 = R.add(lv7, lv6)
                R.output(lv8)
            return lv8

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")) -> R.Tensor((2, 2, 5, 2), "float32"):
            with R.dataflow():
                q = R.add(R.matmul(x, WQ), BQ)
                q1 = R.permute_dims(R.reshape(q, R.shape([2, 5, 2, 2])), axes=[0, 2, 1, 3])
                q2 = R.reshape(q1, R.shape([2, 2, 5, 2]))
                k = R.add(R.matmul(x, WK), BK)
                k1 = R.permute_dims(R.reshape(k, R.shape([2, 5, 2, 2])), axes=[0, 2, 1, 3])
                k2 = R.reshape(k1, R.shape([2, 2, 5, 2]))
                v = R.add(R.matmul(x, WV), BV)
                v1 = R.permute_dims(R.reshape(v, R.shape([2, 5, 2, 2])), axes=[0, 2, 1, 3])
                v2 = R.reshape(v1, R.shape([2, 2, 5, 2]))
                lv7 = R.add(q2, k2)
                lv8 = R.add(lv7, v2)
                R.output(lv8)
            return lv8

    assert_becomes(Before, SplitFusedLinear(), Expected)


def test_a_split_of_the_channels_too_and_the_names_say_which():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")) -> R.Tensor((2, 5, 4), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.split(lv, 3, axis=-1)
                lv2 = lv1[0]
                lv3 = lv1[1]
                lv4 = lv1[2]
                lv5 = R.add(lv2, lv3)
                lv6 = R.add(lv5, lv4)
                R.output(lv6)
            return lv6

    after = SplitFusedLinear()(Before)
    names = [b.var.name for b in after["main"].body.blocks[0].bindings]
    assert [n for n in names if n.startswith("lv.")] == ["lv.q", "lv.k", "lv.v"]


def test_a_linear_that_is_also_read_whole_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")) -> R.Tensor((2, 5, 12), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.split(lv, 3, axis=-1)
                lv2 = lv1[0]
                lv3 = lv1[1]
                lv4 = lv1[2]
                lv5 = R.concat((lv4, lv3, lv2), axis=-1)
                lv6 = R.add(lv5, lv)
                R.output(lv6)
            return lv6

    assert_untouched(Untouched, SplitFusedLinear())
