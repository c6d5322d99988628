"""Run a compiled library on an NVIDIA GPU: constants stay there, inputs and outputs are copied.

A call launches CUDA graphs, recorded by the first call, and the few kernels that touch inputs or outputs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvmq.errors import GpuError, InputError
from tvmq.gpu import CUDA_DEVICE, GRAPH
from tvmq.gpu_device import GpuClock, GpuMemory, use_gpu
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
        use_gpu(self._number)  # whichever one the caller meant before

    def run_there(self, *values: Any) -> tuple[Any, ...]:
        """Return main's outputs as tensors in the GPU's memory, maybe before they are computed; see DLPack.

        Kernels run on CUDA's default stream; a call from another stream of torch waits for both.
        """
        stream = _torch_stream(self._number)
        if stream is not None:
            stream.synchronize()
        with telling(), self._lock:
            tensors = self._tensors(self._main, values, self._outputs)
            found = tuple(self._memory.copied(tensor) for tensor in tensors)  # the next call may write there
            if stream is not None:
                self._memory.synchronize()
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
                self._memory.synchronize()

        return compute

    def _runtime(self) -> Any:
        ffi = load_runtime()
        self._memory = GpuMemory(ffi, self._number)
        self._inputs: dict[int, Any] = {}  # by their number, where inputs are copied to
        return ffi

    def _constant(self, array: Array) -> Any:
        return self._memory.put(array)

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
            self._inputs[index] = self._memory.put(array)
        else:
            self._memory.fill(self._inputs[index], array)
        return self._inputs[index]

    def _given(self, value: Any) -> Any:
        """Return a value in the GPU's memory as TVM's tensor; one that starts between elements is copied."""
        try:
            given = self._ffi.from_dlpack(value, require_contiguous=True)
        except (BufferError, RuntimeError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(f"inputs: what lies on the GPU cannot be read there ({why}); copy it") from error
        return given if given.data_ptr() % ALIGNMENT == 0 else self._memory.copied(given)

    def _released(self, tensor: Any, inputs: Sequence[Array]) -> Array:
        return self._memory.array(tensor)

    def _recorder(self) -> Recorder:
        self._use_threads()
        return _Recorder(GpuClock())


@contextmanager
def telling() -> Iterator[None]:
    """Raise GpuError with what CUDA says; it may be of an earlier call, since kernels run by themselves."""
    try:
        yield
    except RuntimeError as error:
        said = words_of_cuda(error)
        if said is None:
            raise
        raise GpuError(f"gpu: {said}; {_way_out(said)}") from error


def words_of_cuda(error: RuntimeError) -> str | None:
    """Return the line of TVM's error in which CUDA says what happened, None where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if "CUDA" in line), None)


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
