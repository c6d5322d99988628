"""A GPU as programs here use it: memory, a clock, and launches recorded as CUDA graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmq.cuda_libraries import CUDART, load_driver, load_tvm_runtime
from tvmq.errors import GpuError
from tvmq.gpu import CUDA_DEVICE
from tvmq.spec import Array

NON_BLOCKING = 1  # cudaStreamNonBlocking: CUDA's default stream does not wait for it
GLOBAL = 0  # cudaStreamCaptureModeGlobal


def call(name: str, *arguments: Any) -> None:
    """Call a function of CUDA's runtime library, which is loaded already; raise GpuError where it fails."""
    code = getattr(ctypes.CDLL(CUDART[1]), name)(*arguments)
    if code:
        raise GpuError(f"gpu: {name} failed with CUDA's error {code}; an earlier launch may have caused it")


def use_gpu(number: int) -> None:
    """Let CUDA's calls of this thread mean this GPU."""
    code = ctypes.CDLL(CUDART[1]).cudaSetDevice(number)
    if code:
        raise GpuError(f"gpu: CUDA cannot use GPU {number} (error {code}); see `nvidia-smi`")


class GpuMemory:
    """Tensors in the memory of one GPU. ffi: what load_runtime returns; number: as CUDA counts GPUs."""

    def __init__(self, ffi: Any, number: int) -> None:
        """Load the driver and TVM's CUDA runtime; raises EnvironmentMismatchError without them."""
        load_driver()
        load_tvm_runtime()
        self._ffi = ffi
        functions = ("AllocWithScope", "CopyFromBytes", "CopyToBytes", "CopyFromTo")
        self._allocate, self._upload, self._download, self._copy = (
            ffi.get_global_func(f"runtime.TVMTensor{f}") for f in functions
        )
        self._synchronize = ffi.get_global_func("runtime.Device_StreamSync")
        self.device = ffi.device("cuda", number)
        assert self.device.dlpack_device_type() == CUDA_DEVICE

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """Return a tensor with whatever lies there."""
        return self._allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), self.device, None)

    def put(self, array: Array) -> Any:
        """Return a tensor with the numbers of a contiguous array."""
        tensor = self.empty(array.shape, str(array.dtype))
        self.fill(tensor, array)
        return tensor

    def fill(self, tensor: Any, array: Array) -> None:
        """Overwrite a tensor by a contiguous array of its size."""
        self._upload(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def array(self, tensor: Any) -> Array:
        """Return the numbers of a tensor, once what computes them is done."""
        output = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._download(tensor, ctypes.c_void_p(output.ctypes.data), output.nbytes)
        return output

    def copied(self, tensor: Any) -> Any:
        """Return a tensor's numbers in memory of their own."""
        copy = self.empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, copy)
        return copy

    def synchronize(self) -> None:
        """Wait until the GPU has done all that it was given."""
        self._synchronize(self.device, 0)


class GpuClock:
    """Times what the GPU does between two marks in its queue: no launch or wait of the CPU counts."""

    def __init__(self) -> None:
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            call("cudaEventCreate", ctypes.byref(event))

    def __del__(self) -> None:
        for event in self._events:
            ctypes.CDLL(CUDART[1]).cudaEventDestroy(event)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long the GPU was busy with what work gives it."""
        begin, end = self._events
        call("cudaEventRecord", begin, None)
        work()
        call("cudaEventRecord", end, None)
        call("cudaEventSynchronize", end)
        found = ctypes.c_float()
        call("cudaEventElapsedTime", ctypes.byref(found), begin, end)
        return found.value / 1e3


class Graph:
    """Launches that the GPU makes one after the other at one word of the CPU: a CUDA graph."""

    def __init__(self, ffi: Any, device: Any, work: Callable[[], None]) -> None:
        """Record what work launches, without running it; each kernel must have run before."""
        self._made = ctypes.c_void_p()
        stream, recorded = ctypes.c_void_p(), ctypes.c_void_p()
        call("cudaStreamCreateWithFlags", ctypes.byref(stream), NON_BLOCKING)
        try:
            with ffi.use_raw_stream(device, stream.value):
                call("cudaStreamBeginCapture", stream, GLOBAL)
                try:
                    work()
                finally:
                    call("cudaStreamEndCapture", stream, ctypes.byref(recorded))
            call("cudaGraphInstantiate", ctypes.byref(self._made), recorded, ctypes.c_ulonglong(0))
            call("cudaGraphDestroy", recorded)
        finally:
            ctypes.CDLL(CUDART[1]).cudaStreamDestroy(stream)

    def __del__(self) -> None:
        if self._made.value:
            ctypes.CDLL(CUDART[1]).cudaGraphExecDestroy(self._made)

    def launch(self) -> None:
        """Launch all of it on CUDA's default stream, behind what is there."""
        call("cudaGraphLaunch", self._made, None)
