import numpy as np
import pytest
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, assert_untouched
from tvmq.passes.drop_softmax_guard import DropSoftmaxGuard

MINUS_INF = R.const(float("-inf"), "float32")
WINDOW = np.zeros((5, 5), np.float32)
WINDOW[0, 1:] = -np.inf
HIDDEN = WINDOW.copy()
HIDDEN[0] = -np.inf


def guarded(mask):
    """Return torch's softmax with its guard, over q k^T + mask."""
    MASK = relax.const(mask)

    @I.ir_module
    class Guarded:
        @R.function
        def main(q: R.Tensor((2, 5, 4), "float32"), k: R.Tensor((2, 4, 5), "float32")) -> R.Tensor(
            (2, 5, 5), "float32"
        ):
            with R.dataflow():
                product = R.matmul(q, k)
                s = R.add(product, MASK)
                p = R.nn.softmax(s, axis=-1)
                lv1 = R.equal(s, MINUS_INF)
                lv2 = R.logical_not(lv1)
                lv3 = R.astype(lv2, "int8")
                lv4 = R.max(lv3, axis=[-1], keepdims=True)
                lv5 = R.astype(lv4, "bool")
                lv6 = R.logical_not(lv5)
                lv7 = R.full_like(p, R.const(0.0, "float32"))
                lv8 = R.where(lv6, lv7, p)
                R.output(lv8)
            return lv8

    return Guarded


def test_a_mask_that_leaves_something_in_every_row_needs_no_guard():
    MASK = relax.const(WINDOW)

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((2, 5, 4), "float32"), k: R.Tensor((2, 4, 5), "float32")) -> R.Tensor(
            (2, 5, 5), "float32"
        ):
            with R.dataflow():
                product = R.matmul(q, k)
                s = R.add(product, MASK)
                p = R.nn.softmax(s, axis=-1)
                R.output(p)
            return p

    assert_becomes(guarded(WINDOW), DropSoftmaxGuard(), Expected)


def test_a_mask_with_a_hidden_row_keeps_it():
    assert_untouched(guarded(HIDDEN), DropSoftmaxGuard())


@pytest.mark.parametrize("hide", [True, False])
def test_a_mask_chosen_by_an_input(hide):
    OTHER = MINUS_INF if hide else R.const(-1e30, "float32")

    @I.ir_module
    class Guarded:
        @R.function
        def main(
            q: R.Tensor((2, 5, 4), "float32"), k: R.Tensor((2, 4, 5), "float32"), m: R.Tensor((5,), "bool")
        ) -> R.Tensor((2, 5, 5), "float32"):
            with R.dataflow():
                product = R.matmul(q, k)
                mask = R.where(m, R.const(0.0, "float32"), OTHER)
                s = R.add(product, mask)
                p = R.nn.softmax(s, axis=-1)
                lv1 = R.equal(s, MINUS_INF)
                lv2 = R.logical_not(lv1)
                lv3 = R.astype(lv2, "int8")
                lv4 = R.max(lv3, axis=[-1], keepdims=True)
                lv5 = R.astype(lv4, "bool")
                lv6 = R.logical_not(lv5)
                lv7 = R.full_like(p, R.const(0.0, "float32"))
                lv8 = R.where(lv6, lv7, p)
                R.output(lv8)
            return lv8

    after = DropSoftmaxGuard()(Guarded)
    kept = [b.value.op.name for b in after["main"].body.blocks[0].bindings].count("relax.where") == 2
    assert kept == hide
