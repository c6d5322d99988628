"""Run the program of one sample on every sample of a batch; threads share the samples out.

Each thread has a virtual machine of its own and computes its samples alone: no kernel waits for the others'
part of it, and what lies between two kernels stays in the core's own cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from tvmq.runtime import (
    NAIVE_ALLOCATOR,
    POOLED_ALLOCATOR,
    KernelTime,
    Program,
    require_threads,
    use_threads,
)
from tvmq.spec import Array, Built

Results = tuple[Array, ...]


class SampleProgram(Program):
    """A loaded library whose functions take one of the samples that a call brings."""

    def __init__(self, built: Built, *, threads: int | None = None) -> None:
        """See Program."""
        self._samples = built.samples
        self._local = threading.local()  # .main: a thread's function
        self._workers: tuple[int, ThreadPoolExecutor | None] = 0, None
        super().__init__(replace(built, inputs=built.sample_inputs()), threads=threads)

    def run(self, *arrays: Array) -> Results:
        """See Program."""
        parts = self._parts(arrays)
        with self._lock:
            if self.threads == 1:
                return _joined([self._call(self._main, part, self._outputs) for part in parts])
            return _joined(list(self._pool().map(self._one, parts)))

    def trace(self, *arrays: Array) -> Results:
        """See Program."""
        with self._lock:
            trace = self._machine(NAIVE_ALLOCATOR)["trace"]
            return _joined([self._call(trace, part, self._sites) for part in self._parts(arrays)])

    def profile(self, *arrays: Array, repeat: int = 20) -> tuple[KernelTime, ...]:
        """Return what a thread spends on each kernel in a call: the time of one sample times its samples."""
        turns = -(-self._samples // self.threads)
        times = super().profile(*self._parts(arrays)[0], repeat=repeat)
        return tuple(replace(time, us=turns * time.us) for time in times)

    def set_threads(self, threads: int) -> None:
        """See Program."""
        require_threads(threads)
        self.threads = threads

    def _pool(self) -> ThreadPoolExecutor:
        """Return so many workers as there are threads now."""
        size, workers = self._workers
        if workers is None or size != self.threads:
            if workers is not None:
                workers.shutdown()
            workers = ThreadPoolExecutor(min(self.threads, self._samples), "tvmq-sample")
            self._workers = self.threads, workers
        return workers

    def _one(self, part: Sequence[Array]) -> Results:
        """Compute a sample with the machine of this thread."""
        main = getattr(self._local, "main", None)
        if main is None:
            _compute_alone()
            main = self._local.main = self._machine(POOLED_ALLOCATOR)["main"]
        return self._call(main, part, self._outputs)

    def _use_threads(self) -> None:
        use_threads(1, at_most=True)

    def _parts(self, arrays: Sequence[Array]) -> list[tuple[Array, ...]]:
        """Return the samples of a call, views that the program reads in place: copies share one buffer."""
        whole = [a if a.flags.carray else np.array(a, order="C") for a in arrays]
        return list(zip(*(np.split(a, self._samples) for a in whole), strict=True))


def _compute_alone() -> None:
    """Keep TVM from giving this thread, which is a worker's, idle workers of its own: one for every CPU."""
    cpus = os.sched_getaffinity(0)
    use_threads(1, at_most=True, alone=True)
    os.sched_setaffinity(0, cpus)  # of this thread, which may use every CPU again


def _joined(parts: Sequence[Results]) -> Results:
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
