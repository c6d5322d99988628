"""A pooling of plain operators computes what numerics says, in the reference and as TVM compiles it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests.schedule.conv_cases import geometry_of
from tests.schedule.pool_cases import pooled, pooling_of
from tvmq import reference
from tvmq.passes.composites import attributes
from tvmq.passes.pool_composite import pool


@pytest.mark.parametrize("in_dtype", ["uint8", "int16"])
@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("max", {"stride_rows": 2, "top": 1, "left": 1, "right": 1}),
        ("mean", {"stride_columns": 2, "bottom": 1}),
        ("mean", {"kernel_rows": 9, "kernel_columns": 7}),  # of all pixels
    ],
)
def test_all_ways_to_pool_give_the_same_bits(operation, fields, in_dtype):
    geometry = geometry_of(5, 5, 3, groups=5, **fields)
    pooling = pooling_of(operation, in_dtype, geometry)
    func = pool("site", pooling, geometry).with_attr("global_symbol", "main")
    x, expected = pooled(pooling, geometry)
    mod = tvm.IRModule({"main": func})
    (by_reference,) = reference.run(mod, [torch.from_numpy(x)])
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    for result in (by_reference.numpy(), machine["main"](tvm.runtime.tensor(x)).numpy()):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
    assert len(np.unique(expected)) > 3
    assert attributes(func)["operation"] == operation
