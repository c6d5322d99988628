import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq.passes.rebuild import bindings, op_name
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.target import load_profile

PROFILE = load_profile("x86_avx2")


def module(*, relu: bool, bias: bool, shape: tuple[int, ...] = (2, 5, 24)) -> tvm.IRModule:
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    y = make.bind("fc", op.matmul(x, make.constant(24, 19)))
    y = make.bind("fc.bias", op.add(y, make.constant(19))) if bias else y
    y = make.bind("relu", op.nn.relu(y)) if relu else y
    return make.module([x], y)


def operations(mod: tvm.IRModule) -> list[str]:
    return [op_name(b.value) for b in bindings(mod["main"]) if isinstance(b.value, relax.Call)]


@pytest.mark.isa("avx2", "fma")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_product_bias_and_relu_become_one_kernel_of_equal_values(relu: bool, bias: bool):
    mod = module(relu=relu, bias=bias)
    scheduled = DispatchFloats(PROFILE)(mod)
    assert not {"matmul", "add", "nn.relu"} & set(operations(scheduled))
    x = np.random.default_rng(1).standard_normal((2, 5, 24)).astype(np.float32)
    found, wanted = (
        relax.VirtualMachine(tvm.compile(m, PROFILE.tvm()), tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
        for m in (scheduled, mod)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_sum_that_is_read_twice_is_not_swallowed():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((5, 24), "float32"))
    y = make.linear("fc", x, 19)
    mod = make.module([x], make.bind("both", op.add(make.bind("relu", op.nn.relu(y)), y)))
    assert operations(DispatchFloats(PROFILE)(mod)).count("nn.relu") == 1


def test_computed_weights_and_vectors_are_left_alone():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((24, 24), "float32"))
    mod = make.module([x], make.bind("square", op.matmul(x, x)))
    tvm.ir.assert_structural_equal(DispatchFloats(PROFILE)(mod), mod)
    vector = module(relu=False, bias=False, shape=(24,))
    tvm.ir.assert_structural_equal(DispatchFloats(PROFILE)(vector), vector)
