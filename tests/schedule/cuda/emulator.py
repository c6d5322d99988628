"""CUDA kernels on this CPU: TVM's CUDA source and tvmq's device functions, compiled with emulator.h."""

from __future__ import annotations

import atexit
import ctypes
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from tvm import tirx

from tests.schedule.cuda.guarded import Guarded
from tvmq.schedule.cuda.gpu import SHARED_BYTES
from tvmq.schedule.cuda.source import device_functions
from tvmq.schedule.linear_spec import TABLE_SIZE

Arrays = list[npt.NDArray[Any]]
HERE = Path(__file__).parent
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{')
SHARED = re.compile(r"extern __shared__ __align__\(64\) (\w+) (\w+)\[\];")
EXTENT = re.compile(r'launch_thread\("(blockIdx|threadIdx)\.([xyz])", (\d+)\)')
ASKED = re.compile(r'alloc_buffer\(\((\d+),\), "uint8", scope="shared.dyn"\)')
BINDING = re.compile(r'thread_binding\((?:T.int64\()?(\d+)\)?, thread="(blockIdx|threadIdx)\.([xyz])"\)')
needs_emulator = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="the emulator wants x86-64 and g++"
)
COMPILER = (
    *("g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fwrapv", "-fno-strict-aliasing"),
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-fno-gnu-unique"),
)
ORDERS = (0, 1)  # gpu_order of emulator.h
ERRORS = {9: "a launch that no GPU takes", 700: "an illegal address", 716: "a misaligned address"}


class EmulatedKernels:
    """Some PrimFuncs with thread bindings, compiled together."""

    def __init__(self, funcs: Mapping[str, tirx.PrimFunc], capability: tuple[int, int] = (8, 0)) -> None:
        self._grids = {name: (*extents(func), shared_bytes(func)) for name, func in funcs.items()}
        most = SHARED_BYTES[capability] - TABLE_SIZE
        assert all(grid[2] <= most for grid in self._grids.values()), f"more shared memory than {most}"
        symbols = {name: f.with_attr("global_symbol", f"f_{name}") for name, f in funcs.items()}
        mod = tvm.IRModule({f"f_{name}": func for name, func in symbols.items()})
        source = generated(mod, capability)
        self._orders = {
            name: [parameters(func).index(p) for p in device_parameters(source, f"f_{name}_kernel")]
            for name, func in funcs.items()
        }
        self._library = ctypes.CDLL(str(shared_library(source, capability)))

    def run(self, name: str, arrays: Sequence[npt.NDArray[Any]]) -> Arrays:
        """Return the arguments after a launch, results included.

        They do not hang on the order of blocks and threads, nor is anything beside them read or written.
        """
        first, second = (self._launched(name, arrays, order) for order in ORDERS)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"{name} hangs on the order of its blocks")
        return first

    def _launched(self, name: str, arrays: Sequence[npt.NDArray[Any]], order: int) -> Arrays:
        blocks, threads, memory = self._grids[name]
        kept = [Guarded(np.ascontiguousarray(array), at_end=order == 0) for array in arrays]
        given = [kept[i].address for i in self._orders[name]]
        error = launched(self._library, f"f_{name}_kernel", given, (*blocks, *threads, memory), order)
        found = [array.taken() for array in kept]
        assert not error, f"{name}: {ERRORS[error]}"
        return found


def launched(
    library: ctypes.CDLL, kernel: str, addresses: Sequence[int], extents: Sequence[int], order: int
) -> int:
    """Launch a kernel; return CUDA's error. extents: blocks, threads, bytes of shared memory."""
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    places = (ctypes.addressof(pointers) + 8 * i for i in range(len(addresses)))
    arguments = (ctypes.c_void_p * len(addresses))(*places)
    ctypes.c_int.in_dll(library, "gpu_order").value = order
    return int(library[f"launch_{kernel}"](arguments, (ctypes.c_uint * 7)(*extents)))


def extents(func: tirx.PrimFunc) -> tuple[list[int], list[int]]:
    """Return the blocks and the threads that func launches."""
    text = func.script()
    found = {(kind, axis): int(n) for kind, axis, n in EXTENT.findall(text)}
    found |= {(kind, axis): int(n) for n, kind, axis in BINDING.findall(text)}
    blocks, threads = ([found.get((k, a), 1) for a in "xyz"] for k in ("blockIdx", "threadIdx"))
    return blocks, threads


def shared_bytes(func: tirx.PrimFunc) -> int:
    """Return the bytes of shared memory that func asks for."""
    return sum(map(int, ASKED.findall(func.script())))


def parameters(func: tirx.PrimFunc) -> list[str]:
    """Return the names of func's buffers, in the order of its parameters."""
    return [str(parameter.name) for parameter in func.params]


def device_parameters(source: str, kernel: str) -> list[str]:
    """Return the names of a kernel's parameters, in the order that TVM gave them; unused ones are gone."""
    text = dict(KERNEL.findall(source))[kernel]
    return [parameter.rsplit(maxsplit=1)[1].removesuffix("_ptr") for parameter in text.split(",")]


def cuda_target(capability: tuple[int, int]) -> Any:
    """Return a target for the source alone."""
    arch = "sm_{}{}".format(*capability)
    return tvm.target.Target(
        {"kind": "cuda", "arch": arch, "host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}}
    )


def generated(mod: tvm.IRModule, capability: tuple[int, int]) -> str:
    """Return the CUDA source that TVM makes of a module."""
    seen: list[str] = []

    def keep(source: str, *_: Any) -> bytes:
        seen.append(source)
        return b""

    before = tvm.get_global_func("tvm_callback_cuda_compile")
    tvm.register_global_func("tvm_callback_cuda_compile", keep, override=True)
    try:
        with cuda_target(capability) as target:
            built = tvm.compile(mod, target=target)
    finally:
        tvm.register_global_func("tvm_callback_cuda_compile", before, override=True)
    return seen[0] if seen else str(built.mod.imports[0].inspect_source())


@cache
def shared_library(source: str, capability: tuple[int, int]) -> Path:
    """Return a library with launch_<kernel>(arguments, extents) of every kernel in the generated source."""
    folder = Path(tempfile.mkdtemp(prefix="tvmq-gpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    text = SHARED.sub(r"\1* \2 = reinterpret_cast<\1*>(gpu::shared);", source)
    (folder / "kernels.cc").write_text(emulated_source(text))
    arch = "-D__CUDA_ARCH__={}{}0".format(*capability)
    command = [*COMPILER, arch, "-I", str(HERE), "-o", str(folder / "kernels.so"), str(folder / "kernels.cc")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:6000]
    return folder / "kernels.so"


def emulated_source(generated_text: str) -> str:
    """Return the C++ source of the library."""
    launchers = []
    for name, parameters in KERNEL.findall(generated_text):
        types = [p.replace("__restrict__", "").rsplit(maxsplit=1)[0] for p in parameters.split(",")]
        values = ", ".join(f"*static_cast<{t}*>(a[{i}])" for i, t in enumerate(types))
        launchers.append(
            f"static void call_{name}(void** a) {{ {name}({values}); }}\n"
            f'extern "C" {{ unsigned arguments_{name} = {len(types)}; }}\n'
            f'extern "C" int launch_{name}(void** arguments, unsigned* n) {{\n'
            f"  const uint3 blocks = {{n[0], n[1], n[2]}}, threads = {{n[3], n[4], n[5]}};\n"
            f"  return gpu::launch(call_{name}, arguments, blocks, threads, n[6]);\n}}\n"
        )
    head = '#include "emulator.h"\n#include <type_traits>\n'
    body = generated_text.replace("#include <cuda.h>", "")
    return f"{head}{device_functions()}\n{body}\n" + "\n".join(launchers)


def load_driver(folder: Path) -> None:
    """Load a driver and a CUDA runtime whose GPU is this CPU; for processes of their own."""
    scripts = {"libcuda.so.1": "", "libcudart.so.13": "libcudart.so.13 { global: cuda*; };"}
    for name, versions in scripts.items():
        (folder / "versions").write_text(versions or "{ global: cu*; };")
        options = [
            f"-Wl,-soname,{name}",
            f"-Wl,--version-script={folder / 'versions'}",
            "-o",
            str(folder / name),
        ]
        command = ["g++", "-O1", "-shared", "-fPIC", *options, str(HERE / "driver.cc"), "-ldl"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)


class EmulatedCompiler:
    """Takes the place of toolkit.Nvrtc: device code for this CPU."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def version(self) -> str:
        """Return that of no real one."""
        return "emulated"

    def cubin(self, source: str, architecture: str) -> bytes:
        """Return a library for driver.cc."""
        number = architecture.removeprefix("sm_")
        return shared_library(source, (int(number[:-1]), int(number[-1]))).read_bytes()
