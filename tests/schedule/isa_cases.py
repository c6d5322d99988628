"""Every x86 instruction set, as far as this CPU can run its code, and the compiler's target for it."""

from __future__ import annotations

from typing import Any

import pytest
import tvm

from tvmq.environment import cpu_features
from tvmq.schedule.isa import ISAS, Isa
from tvmq.target import load_profile

ISA = {isa.name: isa for isa in ISAS}
PROFILES = {
    "amx": "x86_amx",
    "avx512_vbmi": "x86_avx512_vbmi", "avx512_vnni": "x86_avx512_vnni", "avx_vnni": "x86_avx_vnni",
    "avx512": "x86_avx512", "avx2": "x86_avx2", "sse4": "x86_baseline",
}  # fmt: skip
# AVX-512 VNNI has the 256-bit instruction of AVX-VNNI in another encoding: the same kernel, a near twin of
# its code.
TWINS = {"avx_vnni": "avx512_vnni"}


def runnable(name: str) -> str:
    """Return the instruction set whose encodings run the kernels of `name` on this CPU."""
    return name if ISA[name].features <= cpu_features() else TWINS.get(name, name)


def marked(name: str) -> Any:
    """Return name as a test parameter, skipped where this CPU runs neither it nor its twin."""
    return pytest.param(name, marks=pytest.mark.isa(*sorted(ISA[runnable(name)].features)))


# All but linears is the same for AMX as for AVX-512 VBMI.
NAMES = [marked(name) for name in ISA if name != "amx"]
VNNI_NAMES = [marked(name) for name in ISA if name != "amx" and ISA[name].vnni]


def target_of(isa: Isa) -> tvm.target.Target:
    """Return the target of the profile that takes isa, or of its twin."""
    return load_profile(PROFILES[runnable(isa.name)]).tvm()
