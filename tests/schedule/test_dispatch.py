import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests import tiny_transformer
from tvmq import reference
from tvmq.passes.composites import attributes
from tvmq.passes.lower_integer import LowerInteger
from tvmq.schedule import packing
from tvmq.schedule.dispatch import DispatchKernels, called_functions
from tvmq.target import load_profile

(X,) = tiny_transformer.inputs(1, seed=9)


@pytest.fixture(scope="module")
def integer() -> tvm.IRModule:
    return LowerInteger()(tiny_transformer.qdq_module())


def test_kernels_replace_functions_and_the_replaced_are_gone(integer: tvm.IRModule):
    dispatch = DispatchKernels(load_profile("x86_avx512_vnni"))
    scheduled = dispatch(integer)
    kernels = [f for f in scheduled.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    # One per shape and epilogue, not one per site: 13 linears, 2 attentions and 5 norms share these.
    assert 5 <= len(kernels) <= 10
    assert all("global_symbol" not in f.attrs for f in kernels)
    left = {g for g, f in scheduled.functions.items() if isinstance(f, relax.Function) and attributes(f)}
    assert left <= set(called_functions(scheduled["main"]))
    assert {packed.layout for packed in dispatch.packed.values()} == {"linear16x4", "channels16"}


def test_a_profile_without_an_instruction_set_changes_nothing(integer: tvm.IRModule):
    tvm.ir.assert_structural_equal(DispatchKernels(load_profile("rpi3"))(integer), integer)


def test_a_weight_that_a_kernel_is_not_exact_with_gets_none(integer: tvm.IRModule, monkeypatch):
    monkeypatch.setattr(packing, "pairs_stay_in_words", lambda weights: False)
    dispatch = DispatchKernels(load_profile("arm_neon"))
    dispatch(integer)
    assert {call.kernel.name.partition("_")[0] for call in dispatch.calls} == {"layer", "attention"}


@pytest.mark.slow
@pytest.mark.isa("avx2")
def test_scheduled_and_plain_code_give_the_same_bits(integer: tvm.IRModule):
    (wanted,) = reference.run(integer, [torch.from_numpy(X)])
    for name in ("x86_avx2", "x86_baseline"):
        profile = load_profile(name)
        executable = tvm.compile(integer, profile.tvm(), relax_pipeline=relax.get_pipeline("tvmq"))
        found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(X)).numpy()
        assert found.tobytes() == np.ascontiguousarray(wanted.numpy()).tobytes()
