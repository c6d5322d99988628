"""The lowering in other people's pipelines computes what the reference does."""

from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests import tiny_transformer
from tvmq.errors import UsageError
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.lower_integer import LowerInteger
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.target import load_profile

(X,) = tiny_transformer.inputs(1, seed=9)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The output of the qdq transformer, by the reference."""
    from tvmq import reference

    (y,) = reference.run(LowerInteger()(tiny_transformer.qdq_module()), [torch.from_numpy(X)])
    return y.numpy()


def run(executable: Any) -> np.ndarray:
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(X)).numpy()


@pytest.mark.slow
def test_a_user_of_tvm_compiles_a_qdq_module(expected: np.ndarray):
    native = load_profile("native").tvm()
    mod = tiny_transformer.qdq_module()
    assert run(tvm.compile(mod, native, relax_pipeline="tvmq")).tobytes() == expected.tobytes()
    given = relax.get_pipeline("tvmq", target="x86_baseline", threads=2)
    assert run(tvm.compile(mod, native, relax_pipeline=given)).tobytes() == expected.tobytes()


def test_the_passes_work_in_anyones_pipeline(expected: np.ndarray):
    profile = load_profile("native")
    passes = [InsertQdq(tiny_transformer.quantization()), LowerInteger()]
    passes += [DispatchKernels(profile), DispatchFloats(profile)]
    mod = tvm.transform.Sequential(passes)(tiny_transformer.canonical())
    assert run(tvm.compile(mod, profile.tvm())).tobytes() == expected.tobytes()


def test_a_pipeline_for_more_than_the_target_has_is_refused():
    target = load_profile("x86_baseline").tvm()
    pipeline = relax.get_pipeline("tvmq", target="x86_avx512_vnni")
    with pytest.raises(UsageError, match=r"tvm.compile's lacks .*avx512_vnni, .*which 'x86_avx512_vnni'"):
        tvm.compile(tiny_transformer.qdq_module(), target, relax_pipeline=pipeline)
