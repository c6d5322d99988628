import numpy as np
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.fold_constants import FoldConstants

W = const(8, 4)
TABLE = const(1, 2, 5, 5)


def test_weights_are_transposed_and_broadcasts_wait():
    folded = relax.const(W.value.numpy().T.copy())

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((2, 3, 8), "float32"):
            with R.dataflow():
                lv = R.permute_dims(W, axes=[1, 0])
                lv1 = R.broadcast_to(lv, R.shape([2, 4, 8]))
                lv2 = R.matmul(x, lv1)
                R.output(lv2)
            return lv2

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((2, 3, 8), "float32"):
            with R.dataflow():
                lv1 = R.broadcast_to(folded, R.shape([2, 4, 8]))
                lv2 = R.matmul(x, lv1)
                R.output(lv2)
            return lv2

    assert_becomes(Before, FoldConstants(), Expected)


def test_bicubic_resize_is_onnx_runtimes():
    import onnx
    import onnxruntime

    sizes = onnx.numpy_helper.from_array(np.array([1, 2, 3, 3], np.int64), "sizes")
    node = onnx.helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode="cubic", coordinate_transformation_mode="half_pixel"
    )
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1, 2, s, s]) for n, s in (("x", 5), ("y", 3)))
    graph = onnx.helper.make_graph([node], "resize", [x], [y], [sizes])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = session.run(None, {"x": TABLE.value.numpy()})[0]

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32")) -> R.Tensor((1, 2, 3, 3), "float32"):
            with R.dataflow():
                lv = R.image.resize2d(
                    TABLE, R.shape([3, 3]), method="cubic", cubic_alpha=-0.75, rounding_method="floor"
                )
                lv1 = R.add(x, lv)
                R.output(lv1)
            return lv1

    (binding,) = FoldConstants()(Before)["main"].body.blocks[0].bindings
    np.testing.assert_allclose(binding.value.args[1].value.numpy(), expected, rtol=0, atol=1e-5)


def test_what_depends_on_an_input_stays():
    @I.ir_module
    class Untouched:
        @R.function
        def main(x: R.Tensor((8, 4), "float32")) -> R.Tensor((4, 8), "float32"):
            with R.dataflow():
                lv = R.add(x, W)
                lv1 = R.permute_dims(lv, axes=[1, 0])
                R.output(lv1)
            return lv1

    assert_untouched(Untouched, FoldConstants())
