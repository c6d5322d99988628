"""The NVIDIA GPUs of this machine, as the driver describes them; nothing else is loaded to find out.

What code needs of it stands among an artifact's features: "sm_87" is the architecture that its device code is
for, "cuda_13" the least CUDA release that the driver must know.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from tvmq.record import Record

CUDA = "cuda"  # the kind of a target
CUDA_DEVICE = 2  # DLPack's number
DRIVER = "libcuda.so.1"
GRAPH = "graph"  # the function of a library that is main with its kernels recorded
VISIBLE = "CUDA_VISIBLE_DEVICES"  # the variable of the environment that says which GPUs a process sees
# The CUDA release of the runtime: TVM's wheel is linked with 13, which has left out what came before Turing.
# Code for those comes from the compiler of 12, the last that knows them.
RELEASE, OLDER_RELEASE, TURING = "cuda_13", "cuda_12", (7, 5)
# Of Jetsons: device code for one of these runs on no other GPU, nor other GPUs' on it.
TEGRA = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (11, 0)})
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True, slots=True)
class Gpu(Record):
    """One GPU."""

    name: str
    capability: tuple[int, int]
    cuda: int  # the newest major release of CUDA that the driver knows


def features_of_arch(arch: str) -> frozenset[str]:
    """Return what device code for "sm_87" needs."""
    return frozenset({arch, RELEASE if capability_of(arch) >= TURING else OLDER_RELEASE})


def is_gpu_feature(feature: str) -> bool:
    """Tell whether a feature is a GPU's or its driver's, not the CPU's."""
    return feature.startswith(("sm_", "cuda_"))


def capability_of(arch: str) -> tuple[int, int]:
    """Return (8, 7) for "sm_87"."""
    number = arch.removeprefix("sm_")
    return int(number[:-1]), int(number[-1])


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver tells: the GPUs in its order, or why there is none and what helps."""

    found: tuple[Gpu, ...]
    trouble: str = ""
    way_out: str = ""


@cache
def these_gpus() -> Gpus:
    """Return the GPUs that this process sees."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return Gpus(
            (), f"this machine has no driver for one ({DRIVER} is not found)", "install NVIDIA's driver"
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    if code or (code := driver.cuDeviceGetCount(ctypes.byref(count))):
        return Gpus((), f"this machine's driver fails with {_name(driver, code)}", _check())
    if not count.value:
        return Gpus((), "this machine's driver sees no GPU", _check())
    return Gpus(tuple(_gpu(driver, number, version.value // 1000) for number in range(count.value)))


def this_gpu() -> Gpu | None:
    """Return the first GPU, None where there is none, or no driver for it."""
    return next(iter(these_gpus().found), None)


def fitting(features: Iterable[str], gpus: Sequence[Gpu]) -> int | None:
    """Return the number of the first GPU that has what these features say of GPUs, None if none has."""
    needed = tuple(filter(is_gpu_feature, features))
    return next((number for number, gpu in enumerate(gpus) if lacking(needed, gpu) is None), None)


def features_of_gpu(gpu: Gpu | None) -> frozenset[str]:
    """Return all features that the GPU has, none without one."""
    if gpu is None:
        return frozenset()
    architectures = (f"sm_{gpu.capability[0]}{minor}" for minor in range(10))
    releases = (f"cuda_{release}" for release in range(10, gpu.cuda + 1))
    return frozenset(each for each in (*architectures, *releases) if lacking([each], gpu) is None)


def lacking(features: Iterable[str], gpu: Gpu | None) -> str | None:
    """Return what a GPU lacks of these features, as the middle of a sentence; None if nothing."""
    found = _lack(features, gpu)
    return found and found[0]


def way_out(features: Iterable[str], gpu: Gpu | None) -> str:
    """Return what to do about it, "" where only code for something else than GPUs helps."""
    found = _lack(features, gpu)
    return found[1] if found else ""


def _lack(features: Iterable[str], gpu: Gpu | None) -> tuple[str, str] | None:
    for feature in sorted(features, reverse=True):  # the architecture first: no driver makes up for it
        if feature.startswith("sm_"):
            wanted = capability_of(feature)
            text = _wanted(wanted)
            if wanted < TURING:
                return f"{text} and a TVM built for CUDA 12; the runtime in TVM's wheel is for CUDA 13", ""
            if gpu is None:
                none = these_gpus()
                return f"{text}; {none.trouble or 'this machine has no GPU'}", none.way_out
            if not _runs(wanted, gpu.capability):
                has = f"this one ({gpu.name}) has {gpu.capability[0]}.{gpu.capability[1]}{_hidden()}"
                return f"{text}; {has}", "compile it for this GPU (see `tvmq targets`)"
        elif feature.startswith("cuda_") and gpu is not None and gpu.cuda < int(feature[5:]):
            newer = f"a driver for CUDA {feature[5:]}; this machine's knows CUDA {gpu.cuda}"
            return newer, "update the driver (on a Jetson, JetPack)"
    return None


def _wanted(capability: tuple[int, int]) -> str:
    major, minor = capability
    later = "" if capability in TEGRA else f" or a later {major}.x"
    return f"an NVIDIA GPU of compute capability {major}.{minor}{later}"


def _runs(code: tuple[int, int], gpu: tuple[int, int]) -> bool:
    if code in TEGRA or gpu in TEGRA:
        return code == gpu
    return code[0] == gpu[0] and code[1] <= gpu[1]


def _gpu(driver: ctypes.CDLL, number: int, release: int) -> Gpu:
    name, device, found = ctypes.create_string_buffer(128), ctypes.c_int(), []
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (found[0], found[1]), release)


def _name(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    known = driver.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
    return text.value.decode() if known and text.value else f"error {code}"


def _check() -> str:
    return f"see what `nvidia-smi` says{_hidden()}"


def _hidden() -> str:
    seen = os.environ.get(VISIBLE)
    return "" if seen is None else f" ({VISIBLE} is {seen!r}, other GPUs are hidden)"
