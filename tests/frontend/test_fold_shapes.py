import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.frontend.fold_shapes import fold_shapes


def test_fixed_shape_becomes_a_constant():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2,), "int64"):
            with R.dataflow():
                shape = R.shape_of(x)
                sizes = R.shape_to_tensor(shape)
                doubled = R.add(sizes, sizes)
                R.output(doubled)
            return doubled

    bindings = list(fold_shapes(Before)["main"].body.blocks[0].bindings)
    constants = [b.value for b in bindings if isinstance(b.value, tvm.ir.GenericConst)]
    assert [b.var.name for b in bindings] == ["sizes", "doubled"]
    np.testing.assert_array_equal(constants[0].value.numpy(), np.array([2, 3], np.int64))
    assert constants[0].value.dtype == "int64"
