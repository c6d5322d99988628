"""A composite computes what numerics.py says, in the reference and when TVM legalises it on any CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.script import relax as R

from tests.passes.composite_cases import CASES, Case
from tvmq import reference
from tvmq.passes import composites
from tvmq.passes.epilogue import Epilogue


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {name: make() for name, make in CASES.items()}


@pytest.fixture(scope="module")
def compiled(cases) -> dict[str, object]:
    """All composites in one library without any schedule."""
    mod = tvm.IRModule()
    for index, case in enumerate(cases.values()):
        mod[f"f{index}"] = case.func.with_attr("global_symbol", f"f{index}")
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    return {name: machine[f"f{index}"] for index, name in enumerate(cases)}


@pytest.mark.parametrize("name", CASES)
def test_all_ways_to_run_a_composite_give_the_same_bits(name, cases, compiled):
    case = cases[name]
    mod = tvm.IRModule({"main": case.func})
    (by_reference,) = reference.run(mod, [torch.from_numpy(a) for a in case.args])
    by_tvm = compiled[name](*(tvm.runtime.tensor(a) for a in case.args)).numpy()
    for result in (by_reference.numpy(), by_tvm):
        assert result.dtype == case.expected.dtype
        np.testing.assert_array_equal(result, case.expected)
    assert len(np.unique(case.expected)) > 4


def test_a_linear_is_a_product_a_shift_and_a_clip():
    @R.function(private=True)
    def expected(
        x: R.Tensor((2, 4), "uint8"),
        weight: R.Tensor((4, 3), "int8"),
        bias: R.Tensor((3,), "int32"),
        shift: R.Tensor((3,), "int32"),
    ) -> R.Tensor((2, 3), "uint8"):
        R.func_attr(
            {
                "tvmq.kernel": "linear",
                "tvmq.site": "fc",
                "tvmq.in_dtype": "uint8",
                "tvmq.out_dtype": "uint8",
                "tvmq.low": 5,
                "tvmq.high": 255,
                "tvmq.zero_point": 0,
                "tvmq.fixed_point": 0,
                "tvmq.gain": 0,
                "tvmq.residual": 0,
                "tvmq.table": 0,
                "tvmq.weight_bits": 8,
            }
        )
        product = R.matmul(x, weight, out_dtype="int32")
        acc = R.add(product, bias)
        shifted = R.right_shift(acc, shift)
        clipped = R.clip(shifted, R.prim_value(5), R.prim_value(255))
        y = R.astype(clipped, dtype="uint8")
        return y

    epilogue = Epilogue(out_dtype="uint8", low=5, high=255)
    func = composites.linear("fc", epilogue, rows=2, inputs=4, outputs=3, in_dtype="uint8")
    tvm.ir.assert_structural_equal(func, expected)


def test_attributes_are_plain_values_of_a_composite_and_of_nothing_else(cases):
    found = composites.attributes(cases["attention"].func)
    assert (found["kernel"], found["site"], found["score_shift"]) == ("attention", "site", 6)
    x = relax.Var("x", relax.TensorType((1,), "int8"))
    assert composites.attributes(relax.Function([x], x, x.ty)) == {}
