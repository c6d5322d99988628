"""CUDA source to device code for one GPU architecture, on machines without a GPU: NVRTC from PyPI's wheels.

TVM makes a CUDA module only where its CUDA runtime is loaded, which wants a driver. Where there is none, a
library of that name stands in whose every function says so: nothing is run at compile time.
"""

from __future__ import annotations

import atexit
import ctypes
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tvmq.cuda_libraries import INSTALL, library, load_cudart, load_driver, load_tvm_runtime
from tvmq.errors import EnvironmentMismatchError
from tvmq.gpu import DRIVER
from tvmq.linker import require_linker
from tvmq.schedule.cuda.source import HEADERS, whole, with_names

NVRTC = {13: ("cu13/lib", "libnvrtc.so.13"), 12: ("cuda_nvrtc/lib", "libnvrtc.so.12")}
# What TVM's CUDA runtime and tvmq.gpu take from the driver. 100 is CUDA_ERROR_NO_DEVICE.
DRIVER_SYMBOLS = (
    "cuInit", "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString",
    "cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip
NO_DEVICE = 100
# Multiplications stay apart from additions: the bits of float operations are those of every other machine.
OPTIONS = ("--std=c++17", "--fmad=false")


class Nvrtc:
    """One version of NVIDIA's runtime compiler."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._library = loaded

    def architectures(self) -> frozenset[int]:
        """Return the architectures it compiles for, 87 for sm_87."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return frozenset(found)

    def version(self) -> str:
        """Return "13.0" of CUDA 13.0."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def cubin(self, source: str, architecture: str) -> bytes:
        """Return the device code of source for an architecture, "sm_87"."""
        return self.compiled(source, architecture, "CUBIN")

    def compiled(self, source: str, architecture: str, form: str) -> bytes:
        """Return what source becomes for an architecture: as "CUBIN" or "PTX"."""
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
        names = [name.encode() for name in HEADERS]
        texts = [text.encode() for text in HEADERS.values()]
        program = ctypes.c_void_p()
        create = (source.encode(), b"model.cu", len(names), _strings(texts), _strings(names))
        self._call("nvrtcCreateProgram", ctypes.byref(program), *create)
        try:
            result = self._library.nvrtcCompileProgram(program, len(options), _strings(options))
            if result:
                raise RuntimeError(f"nvrtc, {architecture}: {self._text(program, 'ProgramLog').decode()}")
            return self._text(program, form)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            raise RuntimeError(f"nvrtc: {name} failed with {result}")


def require_cuda(architecture: str) -> Nvrtc:
    """Return a compiler for the architecture, "sm_87"; with all that building for it needs.

    Raises EnvironmentMismatchError that names the extra which brings what is missing.
    """
    number = int(architecture.removeprefix("sm_").rstrip("af"))
    require_linker()
    for version in NVRTC:
        compiler = _nvrtc(version)
        if compiler is not None and number in compiler.architectures():
            load_cudart()
            return compiler
    extra = "cuda12" if number < 75 else "cuda"
    release = "12" if number < 75 else "13"
    raise EnvironmentMismatchError(
        f"environment: no CUDA compiler for {architecture} found, NVRTC {release} is wanted; "
        f"run {INSTALL.format(extra='compile,' + extra)}"
    )


def compiler_version(architecture: str) -> str:
    """Return the version of the compiler that require_cuda returns, "none" where that is not installed."""
    try:
        return require_cuda(architecture).version()
    except EnvironmentMismatchError:
        return "none"


@contextmanager
def compiling(architecture: str) -> Iterator[None]:
    """Let tvm.compile put device code for the architecture into the modules that it builds in the block."""
    import tvm_ffi

    compiler = require_cuda(architecture)
    _load_runtime()
    before = tvm_ffi.get_global_func("tvm_callback_cuda_compile", allow_missing=True)

    def compiled(source: str, *_: Any) -> bytes:
        return compiler.cubin(whole(with_names(source)), architecture)

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compiled, override=True)
    try:
        yield
    finally:
        if before is not None:
            tvm_ffi.register_global_func("tvm_callback_cuda_compile", before, override=True)


@cache
def _load_runtime() -> None:
    """Load TVM's CUDA runtime on the machine's driver or, where there is none that it takes, a stand-in."""
    try:
        load_driver()
        load_tvm_runtime()
    except EnvironmentMismatchError:
        ctypes.CDLL(str(_stand_in()), ctypes.RTLD_GLOBAL)
        load_tvm_runtime()


def _stand_in() -> Path:
    """Return a libcuda.so.1 without a device; it exists until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tvmq-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / "driver.cc"
    functions = (f'extern "C" int {name}() {{ return {NO_DEVICE}; }}\n' for name in DRIVER_SYMBOLS)
    source.write_text("".join(functions))
    options = ["-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", str(folder / DRIVER)]
    require_linker().run([*options, str(source)])
    return folder / DRIVER


@cache
def _nvrtc(version: int) -> Nvrtc | None:
    try:
        return Nvrtc(ctypes.CDLL(library(*NVRTC[version])))
    except OSError:
        return None


def _strings(values: list[bytes]) -> Any:
    return (ctypes.c_char_p * len(values))(*values)
