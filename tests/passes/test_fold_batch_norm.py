import numpy as np
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.fold_batch_norm import FoldBatchNorm

W, WT = const(4, 3, 3, 3), const(3, 4, 2, 2, seed=5)
GAMMA, BETA, MEAN = (const(4, seed=s) for s in (1, 2, 3))
VARIANCE = relax.const(np.float32([0.5, 1.0, 2.0, 3.0]))


def folded(weight, axis):
    scale = GAMMA.value.numpy().astype(np.float64) / np.sqrt(VARIANCE.value.numpy().astype(np.float64) + 1e-5)
    shape = [1] * 4
    shape[axis] = 4
    shift = BETA.value.numpy() - MEAN.value.numpy() * scale
    w = (weight.value.numpy() * scale.reshape(shape)).astype(np.float32)
    return relax.const(w), relax.const(shift.astype(np.float32).reshape(1, 4, 1, 1)), scale


def test_batch_norm_goes_into_the_convolution():
    WS, SHIFT, _ = folded(W, 0)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                lv = R.nn.conv2d(x, W)
                lv1 = R.nn.batch_norm(lv, GAMMA, BETA, MEAN, VARIANCE, axis=1, epsilon=1e-5, training=False)
                lv2 = lv1[0]
                R.output(lv2)
            return lv2

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                lv = R.nn.conv2d(x, WS)
                lv2 = R.add(lv, SHIFT)
                R.output(lv2)
            return lv2

    assert_becomes(Before, FoldBatchNorm(), Expected)


def test_and_into_the_transposed_one():
    WS, SHIFT, _ = folded(WT, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")) -> R.Tensor((1, 4, 10, 10), "float32"):
            with R.dataflow():
                lv = R.nn.conv2d_transpose(x, WT, strides=[2, 2])
                lv1 = R.nn.batch_norm(lv, GAMMA, BETA, MEAN, VARIANCE, axis=1, epsilon=1e-5, training=False)
                lv2 = lv1[0]
                R.output(lv2)
            return lv2

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")) -> R.Tensor((1, 4, 10, 10), "float32"):
            with R.dataflow():
                lv = R.nn.conv2d_transpose(x, WS, strides=[2, 2])
                lv2 = R.add(lv, SHIFT)
                R.output(lv2)
            return lv2

    assert_becomes(Before, FoldBatchNorm(), Expected)


def test_without_a_convolution_it_is_multiply_and_add():
    _, SHIFT, scale = folded(W, 0)
    SCALE = relax.const(scale.astype(np.float32).reshape(1, 4, 1, 1))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 3, 3), "float32")) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                lv1 = R.nn.batch_norm(x, GAMMA, BETA, MEAN, VARIANCE, axis=1, epsilon=1e-5, training=False)
                lv2 = lv1[0]
                R.output(lv2)
            return lv2

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 3, 3), "float32")) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                lv1 = R.multiply(x, SCALE)
                lv2 = R.add(lv1, SHIFT)
                R.output(lv2)
            return lv2

    assert_becomes(Before, FoldBatchNorm(), Expected)


def test_training_mode_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((1, 4, 3, 3), "float32")) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                lv1 = R.nn.batch_norm(x, GAMMA, BETA, MEAN, VARIANCE, axis=1, epsilon=1e-5, training=True)
                lv2 = lv1[0]
                R.output(lv2)
            return lv2

    assert_untouched(Untouched, FoldBatchNorm())
