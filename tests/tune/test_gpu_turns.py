"""Kernels of a GPU are timed in turns, by graphs; tuning as a whole runs on an emulated GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.schedule.cuda.emulator import needs_emulator
from tvmq.errors import DeviceError, GpuError
from tvmq.tune import gpu_turns
from tvmq.tune.gpu_turns import GpuKernels

X, WEIGHT = np.arange(8, dtype=np.int8), np.full(8, 3, np.int8)
Array = np.ndarray[Any, Any]


class Memory:
    """The memory of a GPU that is this CPU."""

    device = "gpu"

    def __init__(self, _ffi: Any, _number: int) -> None:
        pass

    def put(self, array: Array) -> Array:
        return array.copy()

    def fill(self, tensor: Array, array: Array) -> None:
        tensor[...] = array

    def array(self, tensor: Array) -> Array:
        return tensor


class Clock:
    """This CPU's clock."""

    def seconds(self, work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


class Graph:
    """Runs what was recorded."""

    def __init__(self, _ffi: Any, _device: str, work: Callable[[], None]) -> None:
        self.launch = work


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> GpuKernels:
    for name, other in (("GpuMemory", Memory), ("GpuClock", Clock), ("Graph", Graph)):
        monkeypatch.setattr(gpu_turns, name, other)
    monkeypatch.setattr(gpu_turns, "use_gpu", lambda *_: None)
    return made()


def made() -> GpuKernels:
    return GpuKernels(None, 1, [X, WEIGHT], [False, True], [([8], "int16")], 40)


def test_what_a_function_writes_is_told_and_what_it_leaves_is_marked(kernels: GpuKernels):
    def half(x: Array, weight: Array, out: Array) -> None:
        out[:4] = x[:4].astype(np.int16) * weight[:4]

    for _ in "ab":
        found = np.frombuffer(kernels.written(half), np.int16)
        np.testing.assert_array_equal(found, [0, 3, 6, 9, *[0x5555] * 4])
        kernels.written(lambda x, weight, out: out.fill(0))


def test_times_are_of_one_launch_on_every_list_of_arguments(kernels: GpuKernels):
    weights: dict[str, list[int]] = {"fast": [], "slow": []}

    def function(name: str, seconds: float) -> Callable[..., None]:
        def run(_: Array, weight: Array, __: Array) -> None:
            weights[name].append(weight.ctypes.data)
            time.sleep(seconds)

        return run

    fast, slow = kernels.timed([function("fast", 0.0), function("slow", 2e-3)], 0.02)
    assert 0 < min(fast) < 1e-3 < 2e-3 <= min(slow) < 2e-2
    for seen in weights.values():
        assert len(set(seen)) == 5  # lists of arguments: 40 bytes by 8
        assert seen[:5] == seen[5:10]


@pytest.mark.parametrize("error", [RuntimeError("CUDALaunch Error: X\n grid"), GpuError("gpu: X")])
def test_a_default_that_fails_is_not_the_candidates_fault(kernels: GpuKernels, error: Exception):
    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(DeviceError, match=r"does not run the default kernel \(gpu: .*X\); free its memory"):
        kernels.default(fail)
    with pytest.raises(GpuError, match=r"gpu: .*X$"):
        kernels.written(fail)


def test_memory_that_is_full_is_nobodys_fault(kernels: GpuKernels, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise RuntimeError("Check failed: CUDA: out of memory")

    monkeypatch.setattr(Memory, "put", full)
    with pytest.raises(DeviceError, match="out of memory"):
        made()


@pytest.mark.slow
@needs_emulator
def test_a_board_and_this_machine_tune_for_a_gpu():
    pytest.importorskip("xgboost")
    calm = os.environ | {"TVM_THREAD_POOL_SPIN_COUNT": "0"}
    command: Sequence[str] = [sys.executable, "-m", "tests.tune.emulated_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=calm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "does not run the default kernel" in done.stdout
