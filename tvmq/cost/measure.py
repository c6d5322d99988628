"""Time kernels as they run in a model: several in turns, code, constants and results as far away as there.

Before a run, what the second cache level of each core held is evicted: in a model, other kernels ran since
the last call. Then the inputs are touched, which the kernel before has just written. Where a model's
constants are more than the last level holds, that is evicted too, once for all copies of a kernel's: a run
has one that no run had, or so many lie between two runs with the same one that it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.bench import percentile
from tvmq.cost.roofline import DEFAULT_L3_BYTES
from tvmq.cost.works import Work
from tvmq.runtime import aligned_empty
from tvmq.spec import Array
from tvmq.target import TargetProfile
from tvmq.tune.measure import EVICTING_CACHES, compiled, operands
from tvmq.tune.turns import MAX_COPIES, settled

SECONDS = 0.03  # of running, for each kernel
MIN_RUNS, MAX_RUNS = 8, 64
DRAM_CACHES = 2  # so many times the last level lies between two readings of what comes from memory
WARM_UPS = 2  # runs before those that count
MAX_DRAM_COPIES = MAX_RUNS + WARM_UPS
LINE = 16  # floats of a cache line
LEAST_US = 0.02  # where the clock sees nothing


@dataclass(frozen=True, slots=True)
class Times:
    """What was found for one kernel."""

    us: float
    spread: float
    runs: int


class Timer:
    """Times works on this machine. The calling thread's pool runs them: see runtime.use_threads."""

    def __init__(self, profile: TargetProfile, constants_from: str) -> None:
        """constants_from: "l3" or "dram"."""
        self._target = profile.tvm()
        machine = profile.machine
        self._evicting, self._most = (
            (EVICTING_CACHES * machine.l2_bytes, MAX_COPIES)
            if constants_from == "l3"
            else (DRAM_CACHES * (machine.l3_bytes or DEFAULT_L3_BYTES), MAX_DRAM_COPIES)
        )
        cores, floats = _workers(), machine.l2_bytes // 4
        self._walk = compiled(_walk(cores, floats), self._target)
        self._others = [tvm.runtime.from_dlpack(_ones(cores, size)) for size in (floats, LINE)]
        far = DRAM_CACHES * (machine.l3_bytes or DEFAULT_L3_BYTES) // 4
        self._far = _ones(1, far) if constants_from == "dram" else _ones(1, 1)
        self._evicted = 0.0
        self._calls: dict[int, float] = {}  # arguments -> seconds of a call that does nothing

    def times(self, works: Sequence[Work]) -> list[Times]:
        """Return the times of one call of each work, measured in turns: a busy moment hits all alike."""
        loaded = [self._loaded(work) for work in works]
        self._evicted = float(self._far.sum())
        for run in loaded:
            self._prepare(run)
            run.once()
        wanted = []
        for run in loaded:
            self._prepare(run)
            wanted.append(min(max(round(SECONDS / run.once()), MIN_RUNS), MAX_RUNS))
        seconds: list[list[float]] = [[] for _ in works]
        for number in range(max(wanted, default=0)):
            for run, kept, runs in zip(loaded, seconds, wanted, strict=True):
                if number < runs:
                    self._prepare(run)
                    kept.append(run.once())
        return [_times(kept, run.call) for kept, run in zip(seconds, loaded, strict=True)]

    def _prepare(self, run: _Runner) -> None:
        self._walk(*self._others)
        for array in run.inputs:
            np.maximum(array, array, out=array)

    def _loaded(self, work: Work) -> _Runner:
        function = work.use.kernel.function(work.decisions)
        sets, inputs, outputs = operands(work.use, function, self._evicting, self._most)
        results = [tvm.runtime.from_dlpack(output) for output in outputs]
        lists = [(*arguments, *results) for arguments in sets]
        return _Runner(compiled(function, self._target), lists, inputs, self._call(len(lists[0])))

    def _call(self, arguments: int) -> float:
        """Return what Python needs to call a function of so many tensors, in seconds."""
        if arguments not in self._calls:
            empty = compiled(_nothing(arguments), self._target)
            tensors = [tvm.runtime.from_dlpack(aligned_empty((1,), "float32")) for _ in range(arguments)]
            runner = _Runner(empty, [tuple(tensors)], [], 0.0)
            self._calls[arguments] = min(runner.once() for _ in range(200))
        return self._calls[arguments]


@dataclass(slots=True)
class _Runner:
    function: Callable[..., None]
    lists: Sequence[tuple[Any, ...]]
    inputs: Sequence[Array]
    call: float  # seconds, of which the kernel has none
    at: int = 0

    def once(self) -> float:
        arguments = self.lists[self.at % len(self.lists)]
        self.at += 1
        began = time.perf_counter()
        self.function(*arguments)
        return time.perf_counter() - began


def _times(seconds: Sequence[float], call: float) -> Times:
    ordered = sorted(seconds)
    low, middle, high = (percentile(ordered, q) for q in (0.1, 0.5, 0.9))
    us = max(1e6 * (settled(seconds) - call), LEAST_US)
    return Times(us, (high - low) / middle if middle else 0.0, len(ordered))


def _workers() -> int:
    """Return how many threads the calling thread's pool has."""
    return int(tvm_ffi.get_global_func("runtime.NumThreads")())


def _ones(rows: int, columns: int) -> Array:
    array = aligned_empty((rows, columns), "float32")
    array.fill(1)
    return array


def _walk(cores: int, floats: int) -> Any:
    """Return a PrimFunc in which each core reads so many floats of its own, one of each cache line."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("walk")
        data = T.arg("data", T.buffer((cores, floats), "float32"))
        found = T.arg("found", T.buffer((cores, LINE), "float32"))
        with T.parallel(cores) as core, T.serial(floats // LINE) as line:
            T.buffer_store(found, found[core, 0] + data[core, line * LINE], [core, 0])
    return builder.get()


def _nothing(arguments: int) -> Any:
    """Return a PrimFunc of so many tensors of one element that stores a single one."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("nothing")
        buffers = [T.arg(f"a{number}", T.buffer((1,), "float32")) for number in range(arguments)]
        T.buffer_store(buffers[-1], const(0.0, "float32"), [0])
    return builder.get()
