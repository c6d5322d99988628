import numpy as np
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched
from tvmq.passes.remove_no_ops import RemoveNoOps

ROWS = relax.const(np.arange(2).reshape(2, 1), "int64")
COLUMNS = relax.const(np.arange(3).reshape(1, 3), "int64")


def test_importer_noise_goes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6, 4), "float32")) -> R.Tensor((3, 8), "float32"):
            with R.dataflow():
                lv = R.reshape(x, R.shape([6, 4]))
                lv1 = R.permute_dims(lv, axes=[1, 0])
                lv2 = R.permute_dims(lv1, axes=[1, 0])
                lv3 = R.astype(lv2, "float32")
                lv4 = R.expand_dims(lv3, axis=[0])
                lv5 = R.permute_dims(lv4, axes=[1, 0, 2])
                lv6 = R.multiply(lv5, R.const(1.0, "float32"))
                lv7 = R.strided_slice(lv6, (0,), (0,), (6,), (1,))
                lv8 = R.reshape(lv7, R.shape([3, 8]))
                lv9 = R.broadcast_to(lv8, R.shape([3, 8]))
                R.output(lv9)
            return lv9

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6, 4), "float32")) -> R.Tensor((3, 8), "float32"):
            with R.dataflow():
                lv8 = R.reshape(x, R.shape([3, 8]))
                R.output(lv8)
            return lv8

    assert_becomes(Before, RemoveNoOps(), Expected)


def test_items_of_known_tuples_broadcast_operands_and_whole_index_grids():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((1, 3), "float32")) -> R.Tensor(
            (2, 3), "float32"
        ):
            with R.dataflow():
                lv = (x, y)
                lv1 = lv[0]
                lv2 = R.broadcast_to(y, R.shape([2, 3]))
                lv3 = R.add(lv1, lv2)
                lv4 = R.nn.relu(lv3)
                gv = lv4
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((1, 3), "float32")) -> R.Tensor(
            (2, 3), "float32"
        ):
            with R.dataflow():
                lv3 = R.add(x, y)
                lv4 = R.nn.relu(lv3)
                R.output(lv4)
            return lv4

    assert_becomes(Before, RemoveNoOps(), Expected)


def test_a_broadcast_that_grows_the_result_and_a_real_permutation_stay():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((1, 3), "float32"), y: R.Tensor((3,), "float32")) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                lv = R.broadcast_to(x, R.shape([2, 3]))
                lv1 = R.add(lv, y)
                lv2 = R.permute_dims(lv1, axes=[1, 0])
                R.output(lv2)
            return lv2

    assert_untouched(Untouched, RemoveNoOps())


def test_an_index_of_every_element_is_a_reshape():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                lv = R.nn.relu(x)
                lv1 = R.index_tensor(lv, (ROWS, COLUMNS))
                R.output(lv1)
            return lv1

    (binding,) = RemoveNoOps()(Before)["main"].body.blocks[0].bindings
    assert binding.value.op.name == "relax.nn.relu"
