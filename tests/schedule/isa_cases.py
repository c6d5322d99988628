"""Every instruction set, as far as its code can run here, and the compiler's target for it.

x86 code runs on this CPU where it has the features, ARM code in emulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tvm

from tests.schedule.emulated_kernel import EmulatedKernel, needs_emulator
from tvmq.environment import cpu_features
from tvmq.schedule.isa import ISAS, Isa
from tvmq.target import load_profile

ISA = {isa.name: isa for isa in ISAS}
PROFILES = {
    "amx": "x86_amx",
    "avx512_vbmi": "x86_avx512_vbmi", "avx512_vnni": "x86_avx512_vnni", "avx_vnni": "x86_avx_vnni",
    "avx512": "x86_avx512", "avx2": "x86_avx2", "sse4": "x86_baseline",
    "i8mm": "neoverse_v1", "dotprod": "arm_dotprod", "neon": "arm_neon",
}  # fmt: skip
EMULATED = {"i8mm": "max", "dotprod": "cortex-a76", "neon": "cortex-a72"}  # the oldest core that has it
# AVX-512 VNNI has the 256-bit instruction of AVX-VNNI in another encoding: the same kernel, a near twin of
# its code.
TWINS = {"avx_vnni": "avx512_vnni"}


def runnable(name: str) -> str:
    """Return the instruction set whose encodings run the kernels of `name` on this CPU."""
    return name if ISA[name].features <= cpu_features() else TWINS.get(name, name)


def marked(name: str, *, slow: bool = False) -> Any:
    """Return name as a test parameter, skipped where neither it nor its twin runs; slow: if emulated."""
    if name in EMULATED:
        return pytest.param(name, marks=[needs_emulator(), *[pytest.mark.slow] * slow])
    return pytest.param(name, marks=pytest.mark.isa(*sorted(ISA[runnable(name)].features)))


def with_long_code_slow(names: list[Any]) -> list[Any]:
    """Return parameters, those slow whose kernels keep LLVM busy: three products in place of one."""
    long = {name for name, isa in ISA.items() if not (isa.vnni or isa.neon)}
    return [
        pytest.param(*each.values, marks=[*each.marks, *[pytest.mark.slow] * (each.values[0] in long)])
        for each in names
    ]


# All but linears is the same for AMX as for AVX-512 VBMI; all but convolutions for i8mm as for dotprod.
OTHERS = [name for name in ISA if name not in ("amx", "i8mm")]
NAMES = [marked(name) for name in OTHERS]
KERNEL_NAMES = [marked(name, slow=True) for name in OTHERS]  # for tests of many whole kernels
VNNI_NAMES = [marked(name) for name in ISA if name != "amx" and ISA[name].vnni]


def target_of(isa: Isa) -> tvm.target.Target:
    """Return the target of the profile that takes isa, or of its twin."""
    return load_profile(PROFILES[runnable(isa.name)]).tvm()


def built(func: Any, name: str) -> Callable[..., Any]:
    """Return a kernel for an instruction set, as a function of TVM's tensors that writes the last ones."""
    isa = ISA[name]
    if name not in EMULATED:
        return tvm.compile(tvm.IRModule({"main": func}), target_of(isa))
    kernel = EmulatedKernel(func, target_of(isa))

    def run(*tensors: Any) -> None:
        after = kernel.run([tensor.numpy() for tensor in tensors], EMULATED[name])
        for tensor, values in zip(tensors, after, strict=True):
            tensor.copyfrom(values)

    return run
