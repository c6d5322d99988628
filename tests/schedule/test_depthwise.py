"""The depthwise kernel equals its composite bit for bit, with and without AVX-512."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tests.passes.composite_cases import depthwise
from tvmq.numerics import INTEGER_RANGE
from tvmq.schedule.depthwise import DepthwiseSpec, depthwise_prim_func, supports


@pytest.mark.parametrize("cpu", ["native", "x86-64"])
@pytest.mark.parametrize("channels", [4, 24, 32])
@pytest.mark.parametrize(("out_dtype", "strides"), [("uint8", (1, 1)), ("int16", (2, 1)), ("int8", (2, 3))])
def test_the_kernel_gives_the_composites_bits(cpu, channels, out_dtype, strides):
    case = depthwise(out_dtype, strides, channels=channels)
    spec = DepthwiseSpec(case.args[0].shape, (3, 2), strides, "uint8", out_dtype, *INTEGER_RANGE[out_dtype])
    name = tvm.target.codegen.llvm_get_system_cpu() if cpu == "native" else cpu
    target = tvm.target.Target({"kind": "llvm", "mcpu": name})
    kernel = tvm.compile(depthwise_prim_func(spec), target=target)
    out = tvm.runtime.tensor(np.full(case.expected.shape, 77, out_dtype))
    kernel(*(tvm.runtime.tensor(a) for a in case.args), out)
    np.testing.assert_array_equal(out.numpy(), case.expected)


@pytest.mark.parametrize(
    ("channels", "kernel", "word"), [(6, (3, 3), "6 channels"), (16, (12, 12), "144 taps")]
)
def test_what_it_cannot_build_has_a_reason(channels, kernel, word):
    spec = DepthwiseSpec((1, 20, 20, channels), kernel, (1, 1), "uint8", "uint8", 0, 255)
    assert word in supports(spec)
    with pytest.raises(ValueError, match=word):
        depthwise_prim_func(spec)
