"""Time functions of a GPU in turns; needs no compiler, so that boards do it, too.

A kernel is over before a launch of the next one is, so each function's launches are recorded and launched
together, as in a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvmq.errors import DeviceError, GpuError
from tvmq.gpu_device import GpuClock, GpuMemory, Graph, use_gpu
from tvmq.gpu_runtime import words_of_cuda
from tvmq.runtime import aligned_empty
from tvmq.spec import Array
from tvmq.tune.turns import Times, copies, timed

SPAN = 1e-3  # seconds that the launches of one graph take, at least
MOST_LAUNCHES = 64  # of a graph, if the argument lists are not more


class GpuKernels:
    """Arguments of a kernel in a GPU's memory, and functions that take them.

    Functions run on the memory of this process; what one destroys is lost for all: see tvmq.tune.here.
    """

    def __init__(
        self,
        ffi: Any,
        number: int,
        arguments: Sequence[Array],
        constant: Sequence[bool],
        outputs: Sequence[tuple[Sequence[int], str]],
        evicting: int,
    ) -> None:
        """number: of the GPU, as CUDA counts them; the rest as turns.copies has it.

        Raises DeviceError where CUDA fails, EnvironmentMismatchError without its libraries.
        """
        try:
            with _telling():
                self._memory = GpuMemory(ffi, number)
                use_gpu(number)
                lists = copies(arguments, constant, evicting)
                there = {id(array): self._memory.put(array) for each in lists for array in each}
                self._sets = [[there[id(array)] for array in each] for each in lists]
                self._before = [_unwritten(tuple(shape), dtype) for shape, dtype in outputs]
                self._results = [self._memory.put(array) for array in self._before]
                self._clock = GpuClock()
        except GpuError as error:
            raise _not_the_kernels(error) from error
        self._ffi = ffi

    def default(self, function: Callable[..., None]) -> bytes:
        """Return what the default kernel writes; raises DeviceError: where it fails, no other is to blame."""
        try:
            return self.written(function)
        except GpuError as error:
            raise _not_the_kernels(error) from error

    def written(self, function: Callable[..., None]) -> bytes:
        """Return what a function writes; raises GpuError where it cannot be launched, or fails."""
        with _telling():
            for before, result in zip(self._before, self._results, strict=True):
                self._memory.fill(result, before)
            function(*self._sets[0], *self._results)
            return b"".join(self._memory.array(result).tobytes() for result in self._results)

    def timed(self, functions: Sequence[Callable[..., None]], seconds: float) -> Times:
        """Return the seconds of one launch of each function, which has run before; see turns.timed."""
        with _telling():
            recorded = [self._recorded(function) for function in functions]
            return timed(recorded, [()], (), seconds, once=self._once)

    def _recorded(self, function: Callable[..., None]) -> tuple[Graph, int]:
        """Return a graph of launches on all argument lists in turns, and how many they are."""

        def launches(rounds: int) -> None:
            for _ in range(rounds):
                for arguments in self._sets:
                    function(*arguments, *self._results)

        spent = self._clock.seconds(lambda: launches(1))
        most = max(MOST_LAUNCHES // len(self._sets), 1)
        rounds = min(max(math.ceil(SPAN / max(spent, 1e-9)), 1), most)
        return Graph(self._ffi, self._memory.device, lambda: launches(rounds)), rounds * len(self._sets)

    def _once(self, recorded: tuple[Graph, int], *_: Any) -> float:
        graph, launches = recorded
        graph.launch()  # keeps the GPU busy until the CPU has given it the next: no gap counts
        return self._clock.seconds(graph.launch) / launches


@contextmanager
def _telling() -> Iterator[None]:
    """Raise GpuError for what TVM has no class for."""
    try:
        yield
    except RuntimeError as error:
        raise GpuError(f"gpu: {words_of_cuda(error) or ' '.join(str(error).split())[-200:]}") from error


def _unwritten(shape: tuple[int, ...], dtype: str) -> Array:
    array = aligned_empty(shape, dtype)
    array.view(np.uint8).fill(0x55)
    return array


def _not_the_kernels(error: GpuError) -> DeviceError:
    return DeviceError(
        f"tune: the GPU does not run the default kernel ({error}); free its memory (see `nvidia-smi`), or "
        f"look whether `tvmq verify` passes there; the same call then goes on from where it was"
    )
