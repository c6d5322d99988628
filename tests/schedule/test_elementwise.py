"""The default schedule changes the loops of leftover functions and no bit of their results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.schedule.pool import pool_of
from tvmq.schedule.elementwise import SCHEDULED, ScheduleLeftovers, schedule_leftovers

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})


@I.ir_module
class Leftovers:
    @R.function
    def patchify(x: R.Tensor((1, 3, 224, 224), "float32")):
        with R.dataflow():
            steps = R.add(R.round(R.multiply(x, R.const(32.0))), R.const(128.0))
            levels = R.astype(R.clip(steps, 0, 255), "uint8")
            grid = R.reshape(levels, (1, 3, 14, 16, 14, 16))
            patches = R.reshape(R.permute_dims(grid, [0, 2, 4, 1, 3, 5]), (196, 768))
            R.output(patches)
        return patches

    @R.function
    def tokens(
        cls: R.Tensor((1, 1, 192), "float32"),
        x: R.Tensor((1, 196, 192), "float32"),
        position: R.Tensor((1, 197, 192), "float32"),
    ):
        with R.dataflow():
            out = R.add(R.concat([cls, x], axis=1), position)
            R.output(out)
        return out

    @R.function
    def scale_and_shift(x: R.Tensor((64, 1024), "float32"), y: R.Tensor((64, 1024), "float32")):
        with R.dataflow():
            out = R.add(R.multiply(x, y), x)
            R.output(out)
        return out

    @R.function
    def mask(x: R.Tensor((64, 128), "float32"), y: R.Tensor((64, 128), "bool")):
        with R.dataflow():
            out = R.logical_and(R.greater(x, R.const(0.0)), y)
            R.output(out)
        return out

    @R.function
    def softmax(x: R.Tensor((1, 197, 192), "float32")):
        with R.dataflow():
            out = R.nn.softmax(x)
            R.output(out)
        return out

    @R.function
    def mean_over_tokens(x: R.Tensor((1, 197, 192), "float32")):
        with R.dataflow():
            out = R.mean(x, axis=[1])
            R.output(out)
        return out

    @R.function
    def resize(x: R.Tensor((1, 4, 30, 50), "float32")):
        with R.dataflow():
            out = R.sigmoid(R.image.resize2d(x, size=(61, 100), layout="NCHW", method="linear"))
            R.output(out)
        return out

    @R.function
    def max_pool(x: R.Tensor((1, 8, 112, 112), "float32")):
        with R.dataflow():
            out = R.nn.max_pool2d(x, pool_size=(3, 3), strides=(2, 2), padding=(1, 1))
            R.output(out)
        return out

    @R.function
    def narrow(x: R.Tensor((2, 24, 14, 14), "float32"), y: R.Tensor((2, 24, 14, 14), "float32")):
        with R.dataflow():
            out = R.nn.relu(R.add(x, y))
            R.output(out)
        return out

    @R.function
    def narrow_bias(x: R.Tensor((2, 5, 7, 7), "float32"), y: R.Tensor((5, 1, 1), "float32")):
        with R.dataflow():
            out = R.nn.relu(R.add(x, y))
            R.output(out)
        return out

    @R.function
    def narrow_quantize(x: R.Tensor((4, 9, 7, 4), "float32")):
        with R.dataflow():
            out = R.quantize(x, R.const(0.25, "float32"), R.const(3, "uint8"), axis=-1, out_dtype="uint8")
            R.output(out)
        return out

    @R.function
    def odd(x: R.Tensor((3, 7, 5), "float32")):
        with R.dataflow():
            out = R.permute_dims(R.exp(x), [2, 0, 1])
            R.output(out)
        return out


def lowered() -> tvm.IRModule:
    steps = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
    ]
    return tvm.transform.Sequential([*steps, relax.transform.FuseOps(), relax.transform.FuseTIR()])(Leftovers)


def prim_funcs(mod: tvm.IRModule) -> dict[str, Any]:
    return {
        variable.name_hint: func
        for variable, func in mod.functions.items()
        if isinstance(func, tvm.tirx.PrimFunc)
    }


def run_all(mod: tvm.IRModule) -> dict[str, Any]:
    executable = relax.VirtualMachine(tvm.compile(mod, target=TARGET), tvm.cpu())
    random = np.random.default_rng(0)
    results = {}
    for variable, func in Leftovers.functions.items():
        inputs = [
            (3 * random.standard_normal([int(n) for n in p.ty.shape])).astype(str(p.ty.dtype))
            for p in func.params
        ]
        results[variable.name_hint] = executable[variable.name_hint](*map(tvm.runtime.tensor, inputs)).numpy()
    return results


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_the_unscheduled_functions(threads: int) -> None:
    with pool_of(threads):
        mod = lowered()
        plain, scheduled = run_all(mod), run_all(ScheduleLeftovers(TARGET)(mod))
    assert plain.keys() == scheduled.keys()
    for name in plain:
        np.testing.assert_array_equal(scheduled[name], plain[name], err_msg=name)


def test_quantize_and_patchify_become_one_parallel_loop_of_vectors() -> None:
    text = next(
        func.script()
        for name, func in prim_funcs(schedule_leftovers(lowered(), TARGET)).items()
        if "transpose" in name and "round" in name
    )
    assert text.count("T.sblock(") == 2  # the root and one more: everything else is inlined
    assert "T.parallel(" in text
    assert "T.vectorized(T.int64(16))" in text
    assert "llvm.nearbyint" in text or "nearbyint" not in text  # TVM's own would undo the vectors


def test_rounding_of_either_name_keeps_its_vectors_and_its_ties() -> None:
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        scale, zero = relax.const(0.25, "float32"), relax.const(128, "uint8")
        builder.emit_func_output(builder.emit(relax.op.quantize(x, scale, zero, axis=-1, out_dtype="uint8")))
    mod = relax.transform.LegalizeOps()(builder.get())
    scheduled = schedule_leftovers(mod, TARGET)
    (text,) = (func.script() for func in prim_funcs(scheduled).values())
    assert "T.vectorized(T.int64(16))" in text
    assert "T.round(" not in text
    executable = tvm.compile(scheduled, target=TARGET)
    halves = np.arange(-32, 32, dtype="float32") / 8
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(halves)).numpy()
    np.testing.assert_array_equal(found, np.round(halves * 4) + 128)


def test_rows_narrower_than_a_vector_become_one_loop_of_vectors() -> None:
    scheduled = prim_funcs(schedule_leftovers(lowered(), TARGET))
    texts = [func.script() for func in scheduled.values() if "(2), T.int64(24)" in func.script()]
    assert len(texts) == 1
    assert "T.vectorized(T.int64(16))" in texts[0]
    assert texts[0].count("for ") == 2 or "T.grid(T.int64(588), T.int64(16))" in texts[0]
    assert "// T.int64(14)" not in texts[0].split("T.writes")[1].split("\n", 1)[1]


def test_a_multiply_is_not_moved_next_to_an_addition() -> None:
    # LLVM would make one fused multiply-add of the two and round once instead of twice.
    func = next(
        f
        for n, f in prim_funcs(schedule_leftovers(lowered(), TARGET)).items()
        if "multiply" in n and "round" not in n
    )
    assert func.script().count("T.sblock(") == 3


def test_scheduled_functions_and_other_targets_are_left_alone() -> None:
    mod = schedule_leftovers(lowered(), TARGET)
    assert all(SCHEDULED in func.attrs for func in prim_funcs(mod).values())
    tvm.ir.assert_structural_equal(schedule_leftovers(mod, TARGET), mod)
    tvm.ir.assert_structural_equal(schedule_leftovers(lowered(), tvm.target.Target("c")), lowered())
