"""The reference: exact on integers up to their range, the same codes as TVM at ties, and what it lets see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.qdq_graphs import QdqBuilder, float_input, mlp, random_input
from tests.torch_threads import torch_threads
from tvmq import reference
from tvmq.errors import UnsupportedModelError
from tvmq.passes.lower_integer import LowerInteger


def test_integer_products_are_exact_where_float32_is_not():
    x = relax.Var("x", relax.TensorType((1, 1023), "uint8"))
    w = relax.Var("w", relax.TensorType((1023, 1), "int8"))
    product = QdqBuilder().module([x, w], op.matmul(x, w, out_dtype="int32"))
    inputs = [torch.full((1, 1023), 255, dtype=torch.uint8), torch.full((1023, 1), 127, dtype=torch.int8)]
    (y,) = reference.run(product, inputs)
    assert y.dtype == torch.int32
    assert y.item() == 255 * 127 * 1023  # odd, and above 2**24


def test_it_computes_with_one_thread_and_gives_torch_its_threads_back():
    x, seen = float_input(1, 4), []
    mod = QdqBuilder().module([x], op.negative(x))
    with torch_threads(2):
        reference.run(mod, [torch.zeros(1, 4)], observe=lambda *_: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    assert set(seen) == {1}


def test_quantize_has_tvms_codes_at_ties_and_past_the_range():
    """The one rounding between a float and the integers: both sides must agree on every half."""
    make, x = QdqBuilder(), float_input(1, 4096)
    scale, zero = relax.const(0.25, "float32"), relax.const(3, "uint8")
    mod = make.module([x], make.bind("q", op.quantize(x, scale, zero, axis=-1, out_dtype="uint8")))
    values = (np.arange(4096, dtype=np.float32) - 2048)[None] / 32
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    by_tvm = machine["main"](tvm.runtime.tensor(values)).numpy()
    (by_reference,) = reference.run(mod, [torch.from_numpy(values)])
    np.testing.assert_array_equal(by_reference.numpy(), by_tvm)


def test_observe_sees_every_parameter_and_binding_once_and_in_order():
    seen = []
    mod = mlp()
    (y,) = reference.run(mod, [random_input(mod)], observe=lambda name, value: seen.append((name, value)))
    names = [name for name, _ in seen]
    assert names == ["x", *(str(b.var.name) for b in mod["main"].body.blocks[0].bindings)]
    assert seen[-1][1].equal(y)


def test_trace_gives_the_sites_of_an_integer_module():
    lowered = LowerInteger()(mlp())
    traced = reference.trace(lowered, [random_input(lowered)])
    assert [(site, str(value.dtype)) for site, value in traced] == [
        ("norm", "torch.uint8"),
        ("fc1", "torch.uint8"),
        ("fc2", "torch.int16"),
    ]


def test_kept_values_come_with_the_outputs():
    mod = mlp()
    first = mod["main"].body.blocks[0].bindings[0].var
    outputs, (kept,) = reference.run_and_keep(mod, [random_input(mod)], [first])
    assert outputs[0].equal(reference.run(mod, [random_input(mod)])[0])
    assert str(kept.dtype) == "torch.int16"


@pytest.mark.parametrize(
    ("call", "operator", "static"),
    [
        (op.asinh, "asinh", True),
        (lambda x: op.cumsum(x, axis=0), "cumsum", True),  # runs here, but TVM's build stops at it
        (lambda x: op.strided_slice(x, [0], [1], [0], [-1]), "strided_slice with a negative stride", False),
    ],
)
def test_an_operator_that_cannot_run_is_a_sentence(call, operator, static):
    make, x = QdqBuilder(), float_input(2, 2)
    mod = make.module([x], make.bind("y", call(x)))
    sentence = rf"^y: is {operator}, which tvmq cannot run yet; rewrite"
    with pytest.raises(UnsupportedModelError, match=sentence):
        reference.require_operators(mod) if static else reference.run(mod, [torch.ones(2, 2)])
    if operator == "asinh":
        with pytest.raises(UnsupportedModelError, match=sentence):
            reference.run(mod, [torch.ones(2, 2)])
