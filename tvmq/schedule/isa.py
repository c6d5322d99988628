"""The instruction sets that kernels are written for.

On all of them a kernel computes with vectors of 16 sums of 32 bits; LLVM cuts plain arithmetic on those
into registers. What it does not find by itself, dots of bytes and tables in registers, `x86_intrinsics` and
`arm_intrinsics` write, and what depends on more than one instruction `dots` and `attention_vectors`. A kernel
family asks the Isa, never a CPU feature.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.target import TargetProfile

GROUP_BITS = 512  # 16 sums of 32 bits

_SSE4 = frozenset({"sse", "sse2", "pni", "ssse3", "sse4_1"})
_AVX2 = _SSE4 | {"avx", "avx2"}
TILE_PRODUCT = "tdpbusd_16x16x64_u8s8s32"  # what a profile names to get AMX kernels

_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isa:
    """One instruction set; features as Linux spells them."""

    name: str
    features: frozenset[str]
    bits: int  # of a vector register
    registers: int
    vnni: bool = False  # vpdpbusd: sums of four uint8 x int8; else pmaddwd, sums of two int16 x int16
    amx: bool = False  # tdpbusd: tiles, for linears
    vbmi: bool = False  # vpermi2b: byte tables of 128 entries; else pshufb, tables of 16
    neon: bool = False  # 64-bit ARM: int8 x int8 and uint8 x uint8, so uint8 less 128 is multiplied by int8
    i8mm: bool = False  # usmmla: two pixels of 8 uint8 by two outputs of 8 int8, for linears and convolutions
    dotprod: bool = False  # sdot and udot: sums of four products; else smull, whose neighbours are added up

    @property
    def quads(self) -> bool:
        """Whether a dot adds four products of bytes, not two of int16."""
        return self.vnni or self.neon

    @property
    def parts(self) -> int:
        """Registers that hold one group of 16 sums."""
        return GROUP_BITS // self.bits

    @property
    def accumulators(self) -> int:
        """Groups of sums of a register tile: TVM leaves 12 registers of 64 bytes in one local buffer."""
        return 12 // self.parts

    @property
    def dot(self) -> str:
        """Name of the product of uint8 by int8, four to each of 16 sums; with vpdpbusd a tensor intrinsic."""
        if self.neon:
            name = "usmmla" if self.i8mm else "sdot" if self.dotprod else "smull"
            return f"{name}{self.bits}_dot_16x4_u8s8s32"
        return f"{'vpdpbusd' if self.vnni else 'pmaddubsw'}{self.bits}_dot_16x4_u8s8s32"


_VBMI = _AVX512 | {"avx512_vnni", "avx512vbmi"}

ISAS = (
    Isa(
        name="amx", features=_VBMI | {"amx_tile", "amx_int8"},
        bits=512, registers=32, vnni=True, vbmi=True, amx=True,
    ),
    Isa(name="avx512_vbmi", features=_VBMI, bits=512, registers=32, vnni=True, vbmi=True),
    Isa(name="avx512_vnni", features=_AVX512 | {"avx512_vnni"}, bits=512, registers=32, vnni=True),
    Isa(name="avx_vnni", features=_AVX2 | {"avx_vnni"}, bits=256, registers=16, vnni=True),
    Isa(name="avx512", features=_AVX512, bits=512, registers=32),
    Isa(name="avx2", features=_AVX2, bits=256, registers=16),
    Isa(name="sse4", features=_SSE4, bits=128, registers=16),
    Isa(
        name="i8mm", features=frozenset({"asimd", "asimddp", "i8mm"}),
        bits=128, registers=32, neon=True, dotprod=True, i8mm=True,
    ),
    Isa(
        name="dotprod", features=frozenset({"asimd", "asimddp"}),
        bits=128, registers=32, neon=True, dotprod=True,
    ),
    Isa(name="neon", features=frozenset({"asimd"}), bits=128, registers=32, neon=True),
)  # fmt: skip


def isa_of(profile: TargetProfile) -> Isa | None:
    """Return the fastest instruction set that code for profile may use, None if it has none of them.

    AMX only where the profile names its product: without the system's leave, which loading an artifact asks
    for, the first tile ends the process.
    """
    tiles = any(kernel.intrinsic == TILE_PRODUCT for kernel in profile.kernels)
    usable = (isa for isa in ISAS if isa.features <= profile.features and (tiles or not isa.amx))
    return next(usable, None)
