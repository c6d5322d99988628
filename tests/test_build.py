import numpy as np
import pytest
import tvm

from tests import tiny_transformer
from tvmq import linker
from tvmq.build import (
    build,
    constants_of,
    integer_module,
    lift_constants,
    traced_values,
    warn_of_left,
    with_trace,
)
from tvmq.errors import EnvironmentMismatchError, TvmqWarning
from tvmq.exactness import analyse
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.target import load_profile

ARM = load_profile("arm_dotprod")


@pytest.fixture(scope="module")
def integer() -> tvm.IRModule:
    return LowerInteger()(tiny_transformer.qdq_module())


def test_the_graph_and_its_constants_give_the_module_back(integer: tvm.IRModule):
    built = tiny_transformer.model()._built
    restored = integer_module(built.graph, built.constants)
    again = lift_constants(restored, constants_of(restored["main"]))
    tvm.ir.assert_structural_equal(again, tvm.ir.load_json(built.graph))
    restored_values = [c.value.numpy() for c in constants_of(restored["main"])]
    for constant, value in zip(built.constants, restored_values, strict=True):
        assert value.shape == constant.logical_shape


def test_trace_returns_every_site_and_leaves_main_alone(integer: tvm.IRModule):
    values = traced_values(integer, analyse(integer))
    assert [site.id for _, site in values][:3] == ["blocks.0.norm1", "blocks.0.qkv.q", "blocks.0.qkv.k"]
    traced = with_trace(integer, [var for var, _ in values])
    tvm.ir.assert_structural_equal(traced["main"], integer["main"])
    assert len(traced["trace"].ret_ty.fields) == len(values)


def test_every_constant_becomes_a_parameter_once(integer: tvm.IRModule):
    constants = constants_of(integer["main"])
    assert len(constants) == len(set(constants))
    lifted = lift_constants(integer, constants)["main"]
    assert constants_of(lifted) == []
    taken = [b for b in bindings(lifted) if type(b.value).__name__ == "TupleGetItem"]
    assert len(taken) == len(constants)


def test_no_linker_names_the_package_that_brings_one(integer: tvm.IRModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linker.shutil, "which", lambda name: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EnvironmentMismatchError, match=r"no linker found, .*; run `pip install ziglang`"):
        build(integer, load_profile("native"))
    with pytest.raises(EnvironmentMismatchError, match=r"one of aarch64-linux-gnu-gcc, .*ziglang"):
        tiny_transformer.compiled(target="arm_dotprod")


@pytest.mark.slow
def test_a_program_for_arm_is_linked_for_arm(integer: tvm.IRModule):
    pytest.importorskip("ziglang")
    library = build(integer, ARM).library
    assert library[:4] == b"\x7fELF"
    assert int.from_bytes(library[18:20], "little") == 183  # EM_AARCH64


def test_the_same_module_builds_to_the_same_bytes(integer: tvm.IRModule):
    profile = load_profile("native")
    a, b = (build(integer, profile) for _ in range(2))
    assert a.library == b.library
    for one, other in zip(a.constants, b.constants, strict=True):
        assert (one.name, one.layout) == (other.name, other.layout)
        np.testing.assert_array_equal(one.array, other.array)


def test_what_has_no_kernel_of_a_gpu_is_named():
    with pytest.warns(
        TvmqWarning, match=r"h100: tvmq has no kernel .* for s0, s1, s2, s3, s4 and 2 more; TVM"
    ):
        warn_of_left("h100", [f"s{i}" for i in range(7)])
    warn_of_left("h100", [])


def test_a_composite_without_a_kernel_is_left(integer: tvm.IRModule):
    dispatch = DispatchKernels(load_profile("h100"))
    dispatch(integer)
    assert not dispatch.left
    plain = DispatchKernels(load_profile("rpi3"))
    plain(integer)
    assert {"blocks.1.fc1", "norm", "head"} < set(plain.left)
