"""Run a compiled library on an NVIDIA GPU: constants stay there, inputs and outputs are copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmq.cuda_libraries import load_driver, load_tvm_runtime
from tvmq.runtime import CPU_DEVICE, Program, Recorder, load_runtime
from tvmq.spec import Array

CUDA_DEVICE = 2  # DLPack's number


class GpuProgram(Program):
    """A loaded library and its constants in the memory of the first GPU."""

    def set_threads(self, threads: int) -> None:
        """Do nothing: no thread of the CPU computes."""

    def _use_threads(self) -> None:
        """Leave the pool of the CPU's threads as it is, which may be none."""

    def _runtime(self) -> Any:
        ffi = load_runtime()
        load_driver()
        load_tvm_runtime()
        functions = ("TVMTensorAllocWithScope", "TVMTensorCopyFromBytes", "TVMTensorCopyToBytes")
        self._allocate, self._upload, self._download = (
            ffi.get_global_func(f"runtime.{f}") for f in functions
        )
        self._synchronize = ffi.get_global_func("runtime.Device_StreamSync")
        self._device = ffi.device("cuda", 0)
        self._inputs: dict[int, Any] = {}  # by their number, where inputs are copied to
        return ffi

    def _constant(self, array: Array) -> Any:
        tensor = self._allocate(
            self._ffi.Shape(array.shape), self._ffi.dtype(str(array.dtype)), self._device, None
        )
        self._fill(tensor, array)
        return tensor

    def _machine(self, allocator: int) -> Any:
        machine = self._module["vm_load_executable"]()
        machine["vm_initialization"](CUDA_DEVICE, 0, allocator, CPU_DEVICE, 0, allocator)
        return machine

    def _argument(self, index: int, array: Array) -> Any:
        staging = self._staging[index]
        if array.dtype != staging.dtype or array.shape != staging.shape or not array.flags.c_contiguous:
            np.copyto(staging, array, casting="no")
            array = staging
        if index not in self._inputs:
            self._inputs[index] = self._constant(array)
        else:
            self._fill(self._inputs[index], array)
        return self._inputs[index]

    def _released(self, tensor: Any, inputs: Sequence[Array]) -> Array:
        output = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._download(tensor, ctypes.c_void_p(output.ctypes.data), output.nbytes)
        return output

    def _fill(self, tensor: Any, array: Array) -> None:
        self._upload(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def _recorder(self) -> Recorder:
        return _Recorder(lambda: self._synchronize(self._device, 0))


class _Recorder(Recorder):
    """Waits for the GPU before it looks at the clock: a kernel runs on while the CPU starts the next."""

    def __init__(self, wait: Any) -> None:
        super().__init__()
        self.wait = wait

    def __call__(self, *arguments: Any) -> int:
        self.wait()
        return super().__call__(*arguments)
