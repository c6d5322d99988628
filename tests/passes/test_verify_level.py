import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import const
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.verify_level import verify

W = const(8, 4)


@I.ir_module
class Imported:
    @R.function
    def main(x: R.Tensor((1, 3, 4), "float32")) -> R.Tensor((3, 8), "float32"):
        with R.dataflow():
            lv = R.reshape(x, R.shape([3, 4]))
            lv1 = R.permute_dims(W, axes=[1, 0])
            lv2 = R.matmul(lv, lv1)
            R.output(lv2)
        return lv2


def test_an_imported_module_is_float_and_not_canonical():
    verify(Imported, "float")
    with pytest.raises(ValueError, match="lv1: permute_dims depends on constants alone"):
        verify(Imported, "canonical")


def test_a_canonical_one_is_both():
    verify(canonicalize(Imported), "canonical")


def test_what_is_no_level_and_no_module():
    with pytest.raises(ValueError, match="'qddq': unknown"):
        verify(Imported, "qddq")
    with pytest.raises(ValueError, match="has no function main"):
        verify(tvm.IRModule(), "float")
