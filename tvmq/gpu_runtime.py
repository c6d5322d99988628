"""Run a compiled library on an NVIDIA GPU: constants stay there, inputs and outputs are copied.

A call launches CUDA graphs, recorded by the first call, and the few kernels that touch inputs or outputs.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvmq.cuda_libraries import CUDART, load_driver, load_tvm_runtime
from tvmq.errors import GpuError, InputError
from tvmq.gpu import CUDA_DEVICE, GRAPH
from tvmq.runtime import ALIGNMENT, CPU_DEVICE, KernelCall, KernelTime, Program, Recorder, load_runtime
from tvmq.spec import Array, Built

LAUNCHES = 20  # of a kernel that is measured, back to back


class GpuProgram(Program):
    """A loaded library and its constants in the memory of a GPU. Raises GpuError where that fails."""

    entry = GRAPH

    def __init__(self, built: Built, number: int = 0) -> None:
        """Load the native code, as Program does; number: of the GPU, as CUDA counts them."""
        self._number = number
        with telling():
            super().__init__(built)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Return main's outputs; see Program."""
        with telling():
            return super().run(*arrays)

    def trace(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the integer output of every site; see Program."""
        with telling():
            return super().trace(*arrays)

    def profile(self, *arrays: Array, repeat: int = 20) -> tuple[KernelTime, ...]:
        """Return the shortest time of each kernel; see Program."""
        with telling():
            return super().profile(*arrays, repeat=repeat)

    def set_threads(self, threads: int) -> None:
        """Do nothing: no thread of the CPU computes."""

    def _use_threads(self) -> None:
        """Leave the pool of the CPU's threads as it is, which may be none; CUDA's calls mean this GPU."""
        if self._number:
            ctypes.CDLL(CUDART[1]).cudaSetDevice(self._number)

    def run_there(self, *values: Any) -> tuple[Any, ...]:
        """Return main's outputs as tensors in the GPU's memory, maybe before they are computed; see DLPack.

        Kernels run on CUDA's default stream; a call from another stream of torch waits for both.
        """
        stream = _torch_stream(self._number)
        if stream is not None:
            stream.synchronize()
        with telling(), self._lock:
            tensors = self._tensors(self._main, values, self._outputs)
            found = tuple(self._copied(tensor) for tensor in tensors)
            if stream is not None:
                self._synchronize(self._device, 0)
        return found

    def resident(self, *arrays: Array) -> Callable[[], None]:
        """Return what computes once from these inputs, copied to the GPU now, and waits until it is done.

        Outputs stay there. The next call with other inputs takes their place.
        """
        with telling(), self._lock:
            arguments = [self._argument(i, array) for i, array in enumerate(arrays)]

        def compute() -> None:
            with telling(), self._lock:
                self._use_threads()
                self._main(*arguments, self._params)
                self._synchronize(self._device, 0)

        return compute

    def _runtime(self) -> Any:
        ffi = load_runtime()
        load_driver()
        load_tvm_runtime()
        functions = ("AllocWithScope", "CopyFromBytes", "CopyToBytes", "CopyFromTo")
        self._allocate, self._upload, self._download, self._copy = (
            ffi.get_global_func(f"runtime.TVMTensor{f}") for f in functions
        )
        self._synchronize = ffi.get_global_func("runtime.Device_StreamSync")
        self._device = ffi.device("cuda", self._number)
        self._inputs: dict[int, Any] = {}  # by their number, where inputs are copied to
        return ffi

    def _constant(self, array: Array) -> Any:
        tensor = self._empty(array.shape, str(array.dtype))
        self._fill(tensor, array)
        return tensor

    def _empty(self, shape: Sequence[int], dtype: str) -> Any:
        return self._allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), self._device, None)

    def _copied(self, tensor: Any) -> Any:
        """Return an output in memory of its own: the next call may write where it lies."""
        copy = self._empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, copy)
        return copy

    def _machine(self, allocator: int) -> Any:
        machine = self._module["vm_load_executable"]()
        machine["vm_initialization"](CUDA_DEVICE, self._number, allocator, CPU_DEVICE, 0, allocator)
        return machine

    def _is_of_device(self, error: Exception) -> bool:
        return "CUDA" in str(error)

    def _argument(self, index: int, array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return self._given(array)
        staging = self._staging[index]
        if array.dtype != staging.dtype or array.shape != staging.shape or not array.flags.c_contiguous:
            np.copyto(staging, array, casting="no")
            array = staging
        if index not in self._inputs:
            self._inputs[index] = self._constant(array)
        else:
            self._fill(self._inputs[index], array)
        return self._inputs[index]

    def _given(self, value: Any) -> Any:
        """Return a value in the GPU's memory as TVM's tensor; one that starts between elements is copied."""
        try:
            given = self._ffi.from_dlpack(value, require_contiguous=True)
        except (BufferError, RuntimeError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(f"inputs: what lies on the GPU cannot be read there ({why}); copy it") from error
        return given if given.data_ptr() % ALIGNMENT == 0 else self._copied(given)

    def _released(self, tensor: Any, inputs: Sequence[Array]) -> Array:
        output = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._download(tensor, ctypes.c_void_p(output.ctypes.data), output.nbytes)
        return output

    def _fill(self, tensor: Any, array: Array) -> None:
        self._upload(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def _recorder(self) -> Recorder:
        self._use_threads()
        return _Recorder(GpuClock())


@contextmanager
def telling() -> Iterator[None]:
    """Raise GpuError with what CUDA says; it may be of an earlier call, since kernels run by themselves."""
    try:
        yield
    except RuntimeError as error:
        said = next((line for line in str(error).splitlines() if "CUDA" in line), None)
        if said is None:
            raise
        raise GpuError(f"gpu: {said.strip()}; {_way_out(said)}") from error


def _way_out(said: str) -> str:
    if re.search("out of memory|OUT_OF_MEMORY", said):
        return "compile for a smaller batch, or free its memory (see `nvidia-smi`)"
    return "start the process anew, this one has lost the GPU; `tvmq verify` tells whether the model is sound"


def _torch_stream(number: int) -> Any:
    """Return torch's stream on the GPU if it is not the default one, on which TVM computes."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    stream = torch.cuda.current_stream(number)
    return stream if stream.cuda_stream else None


class GpuClock:
    """Times what the GPU does between two marks in its queue: no launch or wait of the CPU counts."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL(CUDART[1])  # loaded already
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._call("cudaEventCreate", ctypes.byref(event))

    def __del__(self) -> None:
        for event in self._events:
            self._cuda.cudaEventDestroy(event)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long the GPU was busy with what work gives it."""
        begin, end = self._events
        self._call("cudaEventRecord", begin, None)
        work()
        self._call("cudaEventRecord", end, None)
        self._call("cudaEventSynchronize", end)
        found = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(found), begin, end)
        return found.value / 1e3

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise GpuError(
                f"gpu: {name} failed with CUDA's error {code}; call the model once to see which kernel does"
            )


class _Recorder(Recorder):
    """Launches every kernel some times more, and takes the mean: one is over before the clock is read.

    A kernel writes nothing that it reads, so each launch gives the same. Its data comes from the caches.
    """

    def __init__(self, clock: GpuClock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(self, function: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
        if before or symbol.startswith("vm."):
            return 0

        def launch() -> None:
            for _ in range(LAUNCHES):
                function(*arguments)

        spent = self.clock.seconds(launch) / LAUNCHES
        self.calls.append(KernelCall.of(symbol, spent, arguments))
        return 0
