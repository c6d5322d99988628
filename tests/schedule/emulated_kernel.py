"""One kernel for an ARM core, linked to a program of its own that qemu-user runs here: arrays in and out."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from tvm import tirx

from tvmq.target import load_profile

Arrays = list[npt.NDArray[Any]]
# By the first part of a target's triple: the qemu-user program, and the triple of static programs.
EMULATORS = {
    "aarch64": ("qemu-aarch64", "aarch64-linux-musl"),
    "armv7l": ("qemu-arm", "arm-linux-musleabihf"),
    "armv7": ("qemu-arm", "arm-linux-musleabihf"),
    "armv7a": ("qemu-arm", "arm-linux-musleabihf"),
    "arm": ("qemu-arm", "arm-linux-musleabihf"),
}
TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # NumPy's kind -> DLPack's code
WITHOUT_SIGNALS = 128  # a shell's way to say that a signal ended a program


class KernelCrashError(Exception):
    """The emulated program ended by a signal (SIGILL: an instruction that the core lacks), or refused."""


def emulator(architecture: str = "aarch64") -> str | None:
    """Return the qemu-user program for the architecture, None if it is not installed."""
    name = EMULATORS[architecture][0]
    return shutil.which(f"{name}-static") or shutil.which(name)


def needs_emulator(architecture: str = "aarch64") -> pytest.MarkDecorator:
    """Return the mark of tests that run code for the architecture."""
    present = emulator(architecture) and importlib.util.find_spec("ziglang")
    reason = f"{EMULATORS[architecture][0]} (Debian: qemu-user-static) or ziglang (PyPI) is not installed"
    return pytest.mark.skipif(not present, reason=reason)


def run_emulated(func: tirx.PrimFunc, arrays: Sequence[npt.NDArray[Any]], target: Any, cpu: str) -> Arrays:
    """Return the arguments of func as they are after it ran, outputs included, on an emulated core.

    target: of the code: a profile's name, or a tvm Target. cpu: what qemu emulates: cortex-a72, cortex-a76,
    neoverse-n1, max (has i8mm). Kernels that are parallel run as two tasks, one after the other.
    Raises KernelCrashError.
    """
    return EmulatedKernel(func, target).run(arrays, cpu)


class EmulatedKernel:
    """The linked program: link once, run on several cores and inputs."""

    def __init__(self, func: tirx.PrimFunc, target: Any) -> None:
        target = load_profile(target).tvm() if isinstance(target, str) else target
        self.architecture = str(target.attrs["mtriple"]).partition("-")[0]
        folder = tempfile.mkdtemp(prefix="tvmq-emulated-")
        weakref.finalize(self, shutil.rmtree, folder)
        self._program = Path(folder) / "kernel"
        executable = tvm.compile(tvm.IRModule({"main": func}), target)
        executable.export_library(str(self._program), fcompile=_Static(EMULATORS[self.architecture][1]))

    def run(self, arrays: Sequence[npt.NDArray[Any]], cpu: str) -> Arrays:
        """Return the arguments after a run on the emulated cpu."""
        command = [emulator(self.architecture), "-cpu", cpu, str(self._program)]
        given = b"".join(map(_encoded, arrays))
        done = subprocess.run(command, input=given, capture_output=True, check=False)  # type: ignore[arg-type]
        if done.returncode:
            number = -done.returncode if done.returncode < 0 else done.returncode - WITHOUT_SIGNALS
            signals = {int(s): s.name for s in signal.Signals}
            how = signals.get(number, f"exit {done.returncode}")
            raise KernelCrashError(f"{how} on {cpu}: {done.stderr.decode(errors='replace').strip()}")
        return _decoded(done.stdout, arrays)


class _Static:
    """Links objects to a static program around the kernel; for export_library(fcompile=...)."""

    object_format = "o"

    def __init__(self, triple: str) -> None:
        self.triple = triple

    def __call__(self, output: str, objects: str | Sequence[str], *_: Any, **__: Any) -> None:
        files = [objects] if isinstance(objects, str) else list(objects)
        harness = _harness(self.triple)
        command = [*_zig(), "-target", self.triple, "-static", "-s", "-o", output, harness, *files]
        subprocess.run(command, check=True, capture_output=True)


@functools.cache
def _harness(triple: str) -> str:
    """Return the object file of emulated_kernel.c for a triple, compiled once in a process."""
    folder = tempfile.mkdtemp(prefix="tvmq-emulated-")
    atexit.register(shutil.rmtree, folder)
    source = Path(__file__).with_suffix(".c")
    includes = [argument for path in _headers() for argument in ("-I", str(path))]
    command = [*_zig(), "-target", triple, "-O2", "-c", *includes, "-o", f"{folder}/harness.o"]
    subprocess.run([*command, str(source)], check=True)
    return f"{folder}/harness.o"


def _headers() -> list[Path]:
    tvm_ffi = importlib.util.find_spec("tvm_ffi")
    assert tvm_ffi is not None
    packages = [tvm.__file__, str(tvm_ffi.origin)]
    return [Path(package).parent / "include" for package in packages]


def _zig() -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc"]


def _encoded(array: npt.NDArray[Any]) -> bytes:
    head = np.array([TYPE_CODES[array.dtype.kind], 8 * array.itemsize, array.ndim], "<i4")
    return head.tobytes() + np.array(array.shape, "<i8").tobytes() + np.ascontiguousarray(array).tobytes()


def _decoded(data: bytes, like: Sequence[npt.NDArray[Any]]) -> Arrays:
    arrays, offset = [], 0
    for array in like:
        offset += 12 + 8 * array.ndim
        arrays.append(np.frombuffer(data, array.dtype, array.size, offset).reshape(array.shape))
        offset += array.nbytes
    assert offset == len(data)
    return arrays
