from dataclasses import replace

import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes import qdq_graphs
from tests.passes.golden import const
from tests.passes.qdq_graphs import HIDDEN, NORMED, QdqBuilder, float_input
from tvmq.passes import composites
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.epilogue import Epilogue
from tvmq.passes.lower_integer import LowerInteger
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


def test_a_quantized_module_is_qdq_and_its_lowering_integer():
    qdq = qdq_graphs.attention()
    verify(qdq, "qdq")
    verify(LowerInteger()(qdq), "integer")


def quantized_by(scale: relax.Expr) -> tvm.IRModule:
    make, x = QdqBuilder(), float_input(2, 4)
    y = make.bind("y", op.quantize(x, scale, relax.const(0, "int8"), axis=-1, out_dtype="int8"))
    return make.module([x, scale] if isinstance(scale, relax.Var) else [x], y)


def test_qdq_wants_scales_that_are_positive_constants():
    with pytest.raises(ValueError, match=r"y: has scale 0, wanted one above 0"):
        verify(quantized_by(relax.const(0.0, "float32")), "qdq")
    with pytest.raises(ValueError, match="y: has a scale or zero point that is no constant"):
        verify(quantized_by(relax.Var("s", relax.TensorType((), "float32"))), "qdq")


def test_qdq_does_not_compute_with_stored_integers():
    make = QdqBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "int8"))
    with pytest.raises(ValueError, match=r"total: add reads stored integers, wanted a dequantize"):
        verify(make.module([x], make.bind("total", op.add(x, x))), "qdq")


def mixed() -> tvm.IRModule:
    """Two quantized linears and a float one between them."""
    make, x = QdqBuilder(), float_input(6, 8)
    first = make.product("first", make.stored("x", x, NORMED), 8)
    between = make.bind("between", op.matmul(first, make.constant(8, 8)))
    total = make.bind("between.bias", op.add(between, make.constant(8)))
    last = make.product("last", make.stored("between", total, HIDDEN), 8)
    return LowerInteger()(make.module([x], make.stored("last", last, HIDDEN)))


def test_integer_excuses_only_the_float_sites_it_is_told_of():
    with pytest.raises(ValueError, match="between: matmul computes in float between integer sites"):
        verify(mixed(), "integer")
    verify(mixed(), "integer", float_sites=["betw*"])


def test_integer_excuses_what_comes_before_the_first_quantize_and_after_the_last_dequantize():
    make, x = QdqBuilder(), float_input(6, 8)
    fc = make.product("fc", make.stored("x", make.bind("scaled", op.nn.gelu(x)), NORMED), 8)
    out = op.nn.softmax(make.stored("fc", fc, HIDDEN))
    verify(LowerInteger()(make.module([x], out)), "integer")


LINEAR = {"rows": 6, "inputs": 8, "outputs": 8}
BYTES = Epilogue(out_dtype="uint8", high=255)


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (
            lambda: composites.linear("q", BYTES, in_dtype="int32", **LINEAR),
            "linear_0: x is int32, wanted uint8 or",
        ),
        (lambda: whole().without_attr("tvmq.low"), r"linear_0: lacks the attribute tvmq\.low"),
        (lambda: whole().without_attr("tvmq.kernel"), r"linear_0: is no composite; wanted tvmq\.kernel"),
        (lambda: whole("float32"), "linear_0: astype computes in float"),
    ],
)
def test_integer_wants_composites_that_are_what_they_say(func, message):
    mod = LowerInteger()(qdq_graphs.attention())
    mod.update_func(mod.get_global_var("linear_0"), func())
    with pytest.raises(ValueError, match=message):
        verify(mod, "integer")


def whole(out_dtype: str = "uint8") -> relax.Function:
    """A linear that says its results are uint8."""
    func = composites.linear("q", replace(BYTES, out_dtype=out_dtype), in_dtype="uint8", **LINEAR)
    return func.with_attr("tvmq.out_dtype", "uint8")
