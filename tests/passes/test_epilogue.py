"""Products and norms that store their result twice: int16 and the uint8 that numerics makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests.passes.composite_cases import conv2d
from tvmq import numerics, reference
from tvmq.passes import composites
from tvmq.passes.composites import attributes
from tvmq.passes.epilogue import Copy


@pytest.mark.parametrize("copy", [Copy(0, 0), Copy(1, 30), Copy(4, 3), Copy(3, 2, 1, 15)])
def test_the_copy_is_the_requantized_result(copy):
    case = conv2d(copy=copy, top=1)
    wanted = numerics.requantize(case.expected, copy.shift, copy.zero_point, "uint8")
    wanted = wanted.clip(copy.low, copy.high)
    main = case.func.with_attr("global_symbol", "main")
    by_reference = reference.run(tvm.IRModule({"main": main}), [torch.from_numpy(a) for a in case.args])
    library = tvm.compile(tvm.IRModule({"main": main}), tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(library, tvm.cpu())
    by_tvm = [r.numpy() for r in machine["main"](*(tvm.runtime.tensor(a) for a in case.args))]
    for both in ([r.numpy() for r in by_reference], by_tvm):
        np.testing.assert_array_equal(both[0], case.expected)
        np.testing.assert_array_equal(both[1], wanted)
    assert len(np.unique(wanted)) > 4


def test_only_a_copy_is_named_in_the_attributes():
    assert attributes(conv2d(copy=Copy(4, 3)).func)["copy_zero_point"] == 3
    assert "copy_shift" not in attributes(conv2d().func)


NORM = {"gain_shift": 3, "epsilon": 500, "limit": numerics.layer_norm_limit(12)}


def norm(copy: Copy) -> relax.Function:
    low, high = numerics.INTEGER_RANGE["int16"]
    return composites.layer_norm(
        "norm", rows=5, channels=12, out_dtype="int16", low=low, high=high, copy=copy, **NORM
    )


def test_a_norm_has_a_copy_too():
    rng = np.random.default_rng(0)
    x = rng.integers(-9000, 9000, (5, 12)).astype(np.int16)
    gain, offset = (rng.integers(-400, 400, 12).astype(np.int32) for _ in range(2))
    func = norm(Copy(6, 90))
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    by_reference = [t.numpy() for t in reference.run(mod, [torch.from_numpy(a) for a in (x, gain, offset)])]
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    by_tvm = [t.numpy() for t in machine["main"](*map(tvm.runtime.tensor, (x, gain, offset)))]
    value = numerics.layer_norm(x, gain, offset, dtype="int16", **NORM)
    copy = numerics.requantize(value, 6, 90, "uint8")
    assert len(np.unique(copy)) > 9
    assert attributes(func)["copy_shift"] == 6
    for found in (by_reference, by_tvm):
        np.testing.assert_array_equal(found[0], value)
        np.testing.assert_array_equal(found[1], copy)
