from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.fold_scale_and_shift import FoldScaleAndShift

W, B, G = const(4, 8), const(8, seed=1), const(8, seed=2)


def test_layer_scale_and_a_second_bias_go_into_the_linear():
    w, b, g = (c.value.numpy() for c in (W, B, G))
    WG, BG = relax.const(w * g), relax.const(b * g + b)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.add(lv, B)
                lv2 = R.multiply(lv1, G)
                lv3 = R.add(lv2, B)
                R.output(lv3)
            return lv3

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                lv = R.matmul(x, WG)
                lv3 = R.add(lv, BG)
                R.output(lv3)
            return lv3

    assert_becomes(Before, FoldScaleAndShift(), Expected)


def test_a_linear_with_a_second_reader_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.multiply(lv, G)
                lv2 = R.add(lv1, lv)
                R.output(lv2)
            return lv2

    assert_untouched(Untouched, FoldScaleAndShift())
