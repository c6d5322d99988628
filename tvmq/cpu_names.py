"""CPU features: LLVM's names for them, Linux's names, and which processor model implies which.

Only features that a compiler emits for ordinary code are listed. What only an operating system or a
cryptography library uses (pku, xsaves, aes, ...) is left out on purpose: virtual machines often hide it,
and no kernel of tvmq would miss it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ARCHITECTURES = ("arm", "aarch64", "x86_64")  # arm: of 32 bits

_SAME_IN_BOTH = (
    "sse", "sse2", "ssse3", "popcnt", "cx16", "movbe", "f16c", "fma", "avx", "avx2", "bmi2", "adx", "gfni",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi",
    "i8mm", "sve", "sve2",
)  # fmt: skip

LINUX_NAME: Mapping[str, str] = {name: name for name in _SAME_IN_BOTH} | {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sahf": "lahf_lm",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "rdm": "asimdrdm",
    "dotprod": "asimddp",
    "lse": "atomics",
}

LINUX_NAME_32 = {"neon": "neon", "vfp4": "vfpv4"}  # of 32-bit ARM

_X86_V1 = frozenset({"sse", "sse2"})
_X86_V2 = _X86_V1 | {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}
_X86_V3 = _X86_V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_ARM_V8_2 = frozenset({"asimd", "asimdhp", "asimdrdm", "asimddp", "atomics"})
_X86_V4 = _X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# What `mcpu` alone lets LLVM emit. The x86-64 levels are the ones of the psABI.
FEATURES_OF_MCPU: Mapping[str, frozenset[str]] = {
    "x86-64": _X86_V1,
    "x86-64-v2": _X86_V2,
    "x86-64-v3": _X86_V3,
    "x86-64-v4": _X86_V4,
    "generic": frozenset({"asimd"}),  # any 64-bit ARM
    "cortex-a72": frozenset({"asimd"}),
    "cortex-a76": _ARM_V8_2,
    "neoverse-n1": _ARM_V8_2,
    "neoverse-v1": _ARM_V8_2 | {"i8mm", "sve"},
    "cortex-a7": frozenset(LINUX_NAME_32.values()),
}


class UnknownCpuNameError(KeyError):
    """An mcpu or mattr whose features tvmq cannot tell."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.name = name
        self.known = tuple(known)


def features_of(mcpu: str, mattr: Iterable[str]) -> frozenset[str]:
    """Return the Linux names of what code for mcpu with mattr ("+avx512vnni") may use."""
    if mcpu not in FEATURES_OF_MCPU:
        raise UnknownCpuNameError(mcpu, FEATURES_OF_MCPU)
    features = set(FEATURES_OF_MCPU[mcpu])
    for attribute in mattr:
        sign, name = attribute[:1], attribute[1:]
        if sign == "-":  # also turns off tuning flags, which are no features
            features.discard(LINUX_NAME.get(name, name))
        elif sign == "+" and name in LINUX_NAME:
            features.add(LINUX_NAME[name])
        else:
            raise UnknownCpuNameError(attribute, (f"+{known}" for known in LINUX_NAME))
    return frozenset(features)


def linux_features(llvm_names: Iterable[str], architecture: str) -> frozenset[str]:
    """Return Linux's names of the features in llvm_names, leaving out tuning flags."""
    known = LINUX_NAME_32 if architecture == "arm" else LINUX_NAME
    return frozenset(known[name] for name in llvm_names if name in known)


def architecture_of(target: Mapping[str, object]) -> str:
    """Return one of ARCHITECTURES, or what else mtriple begins with; "" without one."""
    return architecture_named(str(target.get("mtriple", "")).partition("-")[0])


def architecture_named(name: str) -> str:
    """Return how ARCHITECTURES spells a system's or a compiler's name: arm64, armv7l."""
    return "arm" if name.startswith("armv") else {"arm64": "aarch64"}.get(name, name)
