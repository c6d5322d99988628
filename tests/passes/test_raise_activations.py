import math

import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.relax.op import nn

from tests.passes.golden import assert_same_function, assert_untouched
from tvmq.passes.raise_activations import RaiseActivations


def c(number):
    return relax.const(number, "float32")


def function_of(formula):
    """Return a module whose main applies formula(x, emit) to x [3, 7]."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3, 7), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(formula(x, builder.emit))
        builder.emit_func_output(out)
    return builder.get()


def gelu_divided(x, emit):
    gate = emit(op.add(emit(op.erf(emit(op.divide(x, c(math.sqrt(2)))))), c(1.0)))
    return op.multiply(emit(op.multiply(x, gate)), c(0.5))


def gelu_multiplied(x, emit):
    gate = emit(op.add(c(1.0), emit(op.erf(emit(op.multiply(c(math.sqrt(0.5)), x))))))
    return op.multiply(gate, emit(op.multiply(c(0.5), x)))


def gelu_tanh(x, emit):
    cube = emit(op.power(x, c(3.0)))
    inner = emit(op.add(x, emit(op.multiply(c(0.044715), cube))))
    tanh = emit(op.tanh(emit(op.multiply(inner, c(math.sqrt(2 / math.pi))))))
    return op.multiply(emit(op.multiply(x, c(0.5))), emit(op.add(tanh, c(1.0))))


def gelu_tanh_by_products(x, emit):
    cube = emit(op.multiply(emit(op.multiply(x, x)), x))
    inner = emit(op.add(emit(op.multiply(cube, c(0.044715))), x))
    tanh = emit(op.tanh(emit(op.multiply(c(math.sqrt(2 / math.pi)), inner))))
    return op.multiply(c(0.5), emit(op.multiply(x, emit(op.add(c(1.0), tanh)))))


def silu(x, emit):
    return op.multiply(emit(op.sigmoid(x)), x)


@pytest.mark.parametrize(
    ("formula", "raised"),
    [
        (gelu_divided, nn.gelu),
        (gelu_multiplied, nn.gelu),
        (gelu_tanh, nn.gelu_tanh),
        (gelu_tanh_by_products, nn.gelu_tanh),
        (silu, nn.silu),
        (lambda x, emit: op.clip(x, 0, math.inf), nn.relu),
    ],
)
def test_every_spelling_is_raised(formula, raised):
    before, expected = function_of(formula), function_of(lambda x, emit: raised(x))
    after = RaiseActivations()(before)
    tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)
    assert_untouched(after, RaiseActivations())
    assert_same_function(before, after)


def quick_gelu(x, emit):
    return op.multiply(x, emit(op.sigmoid(emit(op.multiply(x, c(1.702))))))


def gelu_with_another_slope(x, emit):
    gate = emit(op.add(emit(op.erf(emit(op.divide(x, c(1.5))))), c(1.0)))
    return op.multiply(emit(op.multiply(x, gate)), c(0.5))


def hard_tanh(x, emit):
    return op.clip(x, -1, 1)


@pytest.mark.parametrize("formula", [quick_gelu, gelu_with_another_slope, hard_tanh])
def test_lookalikes_stay(formula):
    assert_untouched(function_of(formula), RaiseActivations())
