"""What no kernel claims runs on GPUs too, with the bits that it has on CPUs."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tests.schedule.cuda.emulator import EmulatedKernels, cuda_target, needs_emulator
from tvmq.build import loop_passes
from tvmq.passes.rebuild import op_name


@needs_emulator
def test_a_chain_a_reduction_and_ties():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((6, 37), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            rounded = builder.emit(op.round(op.multiply(x, relax.const(0.5))))
            total = builder.emit(op.sum(op.astype(op.clip(rounded, -9, 9), "int32"), axis=-1))
            out = builder.emit_output(op.add(total, relax.const(3)))
        builder.emit_func_output(out)
    with cuda_target((8, 0)) as target:
        mod = tvm.transform.Sequential(loop_passes(target))(builder.get())
    found = np.random.default_rng(0).integers(-40, 40, (6, 37)).astype("float32")
    wanted = np.rint(found * 0.5).clip(-9, 9).astype("int32").sum(-1) + 3
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    funcs = {call.args[0].name_hint: mod[call.args[0]] for call in calls if op_name(call) == "call_tir"}
    kernels = EmulatedKernels(funcs)
    for name, func in funcs.items():  # the chain, then the sum, whose results are their last parameters
        out = func.params[-1]
        shape = [int(extent) for extent in out.ty.shape]
        found = kernels.run(name, [found, np.zeros(shape, str(out.ty.dtype))])[-1]
    np.testing.assert_array_equal(found, wanted)
