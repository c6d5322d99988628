from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.restore_linear_rank import RestoreLinearRank

W, B = const(4, 8), const(8, seed=1)


def test_the_flattening_moves_behind_the_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6, 4), "float32")) -> R.Tensor((1, 6, 8), "float32"):
            with R.dataflow():
                lv = R.reshape(x, R.shape([6, 4]))
                lv1 = R.matmul(lv, W)
                lv2 = R.add(B, lv1)
                lv3 = R.reshape(lv2, R.shape([1, 6, 8]))
                R.output(lv3)
            return lv3

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6, 4), "float32")) -> R.Tensor((1, 6, 8), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.add(lv, B)
                lv2 = R.reshape(lv1, R.shape([6, 8]))
                lv3 = R.reshape(lv2, R.shape([1, 6, 8]))
                R.output(lv3)
            return lv3

    assert_becomes(Before, RestoreLinearRank(), Expected)


def test_a_flattening_of_channels_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((6, 2, 2), "float32")) -> R.Tensor((6, 8), "float32"):
            with R.dataflow():
                lv = R.reshape(x, R.shape([6, 4]))
                lv1 = R.matmul(lv, W)
                R.output(lv1)
            return lv1

    assert_untouched(Untouched, RestoreLinearRank())
