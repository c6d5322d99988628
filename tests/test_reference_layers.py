"""Poolings in torch are TVM's, whatever their padding; other layers are compared in test_reference_ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import reference
from tvmq.errors import UnsupportedModelError


def pool_module(padding: tuple[int, ...], **attrs: bool) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 4, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(op.nn.avg_pool2d(x, (2, 2), (1, 2), padding, **attrs))
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("padding", [(3, 3, 3, 3), (0, 1, 2, 0), (1, 1, 1, 1)])
def test_a_mean_over_padding_of_any_size_is_that_of_tvm(padding: tuple[int, ...], whole: bool) -> None:
    module = pool_module(padding, count_include_pad=whole)
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 5)).astype("float32")
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())
    (found,) = reference.run(module, [torch.from_numpy(x)])
    np.testing.assert_allclose(found.numpy(), machine["main"](tvm.runtime.tensor(x)).numpy(), 1e-6, 1e-6)


def test_windows_cut_short_over_uneven_padding_are_refused_in_a_sentence() -> None:
    with pytest.raises(UnsupportedModelError, match="avg_pool2d with ceil_mode and this padding"):
        reference.run(pool_module((0, 0, 1, 1), ceil_mode=True), [torch.zeros(1, 2, 4, 5)])
