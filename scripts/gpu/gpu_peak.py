"""The most int8 multiply-accumulates that a GPU does, by peak.cu; runs with nothing but the driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import NotMeasuredError

from tvmq.gpu import DRIVER

SOURCE = Path(__file__).with_name("peak.cu")
PROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
RUNS, ROUNDS = 5, 20_000
WARP = 32


@dataclass(frozen=True)
class Program:
    """One kernel of peak.cu."""

    kernel: str
    instructions: str  # for people
    threads: int  # of a block
    blocks: int  # of a processor
    warps: int  # that share a round

    @property
    def counter(self) -> str:
        """Return the variable that tells the multiply-accumulates of a round."""
        return f"macs_of_{self.kernel}"


WARPS = Program("warps", "mma.sync", 512, 2, 1)
GROUPS = Program("groups", "wgmma", 128, 3, 4)


def programs(architecture: str) -> dict[str, Program]:
    """Return what to compile peak.cu for, and the kernel to run then."""
    found = {architecture: WARPS if architecture != "sm_72" else Program("warps", "dp4a", 512, 2, 1)}
    return found | ({"sm_90a": GROUPS} if architecture == "sm_90" else {})


def prepare(folder: Path, architecture: str) -> None:
    """Put the device code for an architecture into folder; needs NVRTC."""
    from tvmq.schedule.cuda.toolkit import require_cuda

    for name in programs(architecture):
        code = require_cuda(name).cubin(SOURCE.read_text(encoding="utf-8"), name)
        (folder / f"peak.{name}.cubin").write_bytes(code)


@dataclass(frozen=True)
class Peak:
    """The best of all kernels; 10**9 multiply-accumulates a second."""

    gmacs: float
    by_instructions: dict[str, float]


def measured(folder: Path, architecture: str) -> Peak:
    """Return the peak of the first GPU, of several runs the best."""
    driver = Driver()
    found = {
        program.instructions: driver.gmacs((folder / f"peak.{name}.cubin").read_bytes(), program)
        for name, program in programs(architecture).items()
    }
    return Peak(max(found.values()), found)


class Driver:
    """The first GPU, through its driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(DRIVER)
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def gmacs(self, code: bytes, program: Program) -> float:
        """Return how fast a kernel multiplies."""
        module, function, out = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
        processors = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(processors), PROCESSORS, self._device)
        blocks = processors.value * program.blocks
        self._call("cuModuleLoadData", ctypes.byref(module), code)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, program.kernel.encode())
        self._call("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(4 * blocks * program.threads))
        each = self._variable(module, program.counter)
        rounds = ctypes.c_int(ROUNDS)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(out), ctypes.addressof(rounds))
        grid = (blocks, 1, 1, program.threads, 1, 1, 0, None)

        def launch() -> None:
            self._call("cuLaunchKernel", function, *grid, values, None)

        launch()
        seconds = min(self._seconds(launch) for _ in range(RUNS))
        self._call("cuMemFree_v2", out)
        groups = blocks * program.threads / WARP / program.warps
        return groups * each * ROUNDS / seconds / 1e9

    def _variable(self, module: ctypes.c_void_p, name: str) -> int:
        place, size, value = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_uint32()
        self._call("cuModuleGetGlobal_v2", ctypes.byref(place), ctypes.byref(size), module, name.encode())
        self._call("cuMemcpyDtoH_v2", ctypes.byref(value), place, size)
        return value.value

    def _seconds(self, launch: Any) -> float:
        begin, end, ms = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
        for event in (begin, end):
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", begin, None)
        launch()
        self._call("cuEventRecord", end, None)
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(ms), begin, end)
        return ms.value / 1e3

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise NotMeasuredError(f"peak: {name} failed with the driver's error {code}")
