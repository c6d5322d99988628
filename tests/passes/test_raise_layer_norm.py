import numpy as np
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.raise_layer_norm import RaiseLayerNorm

GAMMA, BETA = const(8, seed=1), const(8, seed=2)


def test_onnx_arithmetic_becomes_layer_norm():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 8), "float32")) -> R.Tensor((2, 3, 8), "float32"):
            with R.dataflow():
                lv = R.mean(x, axis=[-1], keepdims=True)
                lv1 = R.subtract(x, lv)
                lv2 = R.power(lv1, R.const(2.0, "float32"))
                lv3 = R.mean(lv2, axis=[-1], keepdims=True)
                lv4 = R.add(lv3, R.const(0.5, "float32"))
                lv5 = R.sqrt(lv4)
                lv6 = R.divide(lv1, lv5)
                lv7 = R.multiply(lv6, GAMMA)
                lv8 = R.add(lv7, BETA)
                R.output(lv8)
            return lv8

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 8), "float32")) -> R.Tensor((2, 3, 8), "float32"):
            with R.dataflow():
                lv8 = R.nn.layer_norm(x, GAMMA, BETA, axes=[-1], epsilon=0.5)
                R.output(lv8)
            return lv8

    assert_becomes(Before, RaiseLayerNorm(), Expected)


def test_rsqrt_and_a_square_by_multiplication():
    ONES, ZEROS = relax.const(np.ones(8, np.float32)), relax.const(np.zeros(8, np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                lv = R.mean(x, axis=[1], keepdims=True)
                lv1 = R.subtract(x, lv)
                lv2 = R.multiply(lv1, lv1)
                lv3 = R.mean(lv2, axis=[1], keepdims=True)
                lv4 = R.add(lv3, R.const(0.5, "float32"))
                lv5 = R.rsqrt(lv4)
                lv6 = R.multiply(lv1, lv5)
                R.output(lv6)
            return lv6

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                lv6 = R.nn.layer_norm(x, ONES, ZEROS, axes=[-1], epsilon=0.5)
                R.output(lv6)
            return lv6

    assert_becomes(Before, RaiseLayerNorm(), Expected)


def test_a_mean_over_another_axis_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((8, 8), "float32")) -> R.Tensor((8, 8), "float32"):
            with R.dataflow():
                lv = R.mean(x, axis=[0], keepdims=True)
                lv1 = R.subtract(x, lv)
                lv2 = R.multiply(lv1, lv1)
                lv3 = R.mean(lv2, axis=[1], keepdims=True)
                lv4 = R.add(lv3, R.const(0.5, "float32"))
                lv5 = R.sqrt(lv4)
                lv6 = R.divide(lv1, lv5)
                R.output(lv6)
            return lv6

    assert_untouched(Untouched, RaiseLayerNorm())
