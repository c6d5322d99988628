"""The NVIDIA GPU of this machine, as its driver describes it; nothing but the driver is loaded to find out.

What code needs of it stands among an artifact's features: "sm_87" is the architecture that its device code is
for, "cuda_13" the least CUDA release that the driver must know.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

CUDA = "cuda"  # the kind of a target
CUDA_DEVICE = 2  # DLPack's number
DRIVER = "libcuda.so.1"
GRAPH = "graph"  # the function of a library that is main with its kernels recorded
# The CUDA release of the runtime: TVM's wheel is linked with 13, which has left out what came before Turing.
RELEASE, OLDER_RELEASE, TURING = "cuda_13", "cuda_11", (7, 5)
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU."""

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


@cache
def this_gpu() -> Gpu | None:
    """Return the first GPU, None where there is none, or no driver for it."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    version, device, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, found = ctypes.create_string_buffer(128), []
    if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, len(name), device):
        return None
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (found[0], found[1]), version.value // 1000)


def features_of_gpu(gpu: Gpu | None) -> frozenset[str]:
    """Return all features that the GPU has, none without one."""
    if gpu is None:
        return frozenset()
    architectures = (f"sm_{gpu.capability[0]}{minor}" for minor in range(10))
    releases = (f"cuda_{release}" for release in range(10, gpu.cuda + 1))
    return frozenset(each for each in (*architectures, *releases) if lacking([each], gpu) is None)


def lacking(features: Iterable[str], gpu: Gpu | None) -> str | None:
    """Return what a GPU lacks of these features, as the middle of a sentence; None if nothing."""
    for feature in sorted(features, reverse=True):  # the architecture first: no driver makes up for it
        if feature.startswith("sm_"):
            major, minor = capability_of(feature)
            wanted = f"an NVIDIA GPU of compute capability {major}.{minor} or a later {major}.x"
            if gpu is None:
                return f"{wanted}; this machine has no GPU, or no driver for it ({DRIVER})"
            if gpu.capability[0] != major or gpu.capability[1] < minor:
                return f"{wanted}; this one ({gpu.name}) has {gpu.capability[0]}.{gpu.capability[1]}"
        elif feature.startswith("cuda_") and gpu is not None and gpu.cuda < int(feature[5:]):
            return f"a driver for CUDA {feature[5:]}; this machine's knows CUDA {gpu.cuda}"
    return None
