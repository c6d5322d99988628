"""Kernels for ARM run emulated: the right numbers, and what a core or an array does not have is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.script import tirx as T

from tests.schedule.emulated_kernel import EmulatedKernel, KernelCrashError, needs_emulator, run_emulated

pytestmark = [pytest.mark.slow, needs_emulator()]  # zig's first link builds a C library: a minute

ARMV7 = {"kind": "llvm", "mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a53", "mfloat-abi": "hard"}


@T.prim_func(s_tir=True)
def dots(a: T.Buffer((16,), "int8"), b: T.Buffer((16,), "int8"), c: T.Buffer((4,), "int32")):
    with T.sblock("root"):
        c[T.ramp(0, 1, 4)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sdot.v4i32.v16i8"),
            c.vload([0], "int32x4"),
            a.vload([0], "int8x16"),
            b.vload([0], "int8x16"),
            dtype="int32x4",
        )


@T.prim_func(s_tir=True)
def reads_on(a: T.Buffer((64,), "int8"), b: T.Buffer((64,), "int8")):
    with T.sblock("root"):
        b[0] = a[64]


@T.prim_func(s_tir=True)
def writes_on(a: T.Buffer((63,), "int8"), b: T.Buffer((63,), "int8")):
    with T.sblock("root"):
        b[63] = a[0]


def tripled(n: int) -> Any:
    given = te.placeholder((n,), "int8", name="given")
    out = te.compute((n,), lambda i: given[i].astype("int32") * 3, name="out")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([given, out]))
    schedule.parallel(schedule.get_loops("out")[0])
    return schedule.mod["main"]


@pytest.mark.parametrize("target", ["rpi4", ARMV7], ids=["rpi4", "armv7"])
def test_a_parallel_kernel_gives_the_right_numbers(target: Any) -> None:
    target, cpu = (
        (target, "cortex-a72") if isinstance(target, str) else (tvm.target.Target(target), "cortex-a7")
    )
    given = np.arange(-18, 19, dtype="int8")
    _, out = run_emulated(tripled(37), [given, np.zeros(37, "int32")], target, cpu)
    np.testing.assert_array_equal(out, 3 * given.astype("int32"))


def test_an_instruction_that_the_core_lacks_ends_the_run() -> None:
    kernel = EmulatedKernel(dots, "rpi5")
    a, b = np.arange(-8, 8, dtype="int8"), np.arange(100, 116, dtype="int8")
    arrays = [a, b, np.full(4, 7, "int32")]
    expected = (a.astype("int32") * b).reshape(4, 4).sum(axis=1) + 7
    np.testing.assert_array_equal(kernel.run(arrays, "cortex-a76")[2], expected)
    with pytest.raises(KernelCrashError, match="SIGILL on cortex-a72"):
        kernel.run(arrays, "cortex-a72")


def test_reading_past_the_end_of_an_argument_ends_the_run() -> None:
    with pytest.raises(KernelCrashError, match="SIGSEGV"):
        run_emulated(reads_on, [np.zeros(64, "int8")] * 2, "rpi4", "cortex-a72")


def test_writing_past_the_end_of_an_argument_is_found_out() -> None:
    with pytest.raises(KernelCrashError, match="past the end"):
        run_emulated(writes_on, [np.zeros(63, "int8")] * 2, "rpi4", "cortex-a72")
