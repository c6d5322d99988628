"""Launches are recorded and clocked as CUDA wants it; here CUDA is a list of what it was asked."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tvmq.errors import GpuError
from tvmq.gpu_device import GpuClock, Graph, call, use_gpu

STREAM, RECORDED, MADE = 77, 88, 99


class Cuda:
    """A CUDA runtime: `failing` is the function that returns an error."""

    def __init__(self, failing: str = "") -> None:
        self.asked: list[str] = []
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.asked.append(name)
            results = {
                "cudaStreamCreateWithFlags": (0, STREAM),
                "cudaStreamEndCapture": (1, RECORDED),
                "cudaGraphInstantiate": (0, MADE),
                "cudaEventElapsedTime": (0, 2.0),
            }
            if name in results and name != self.failing:
                place, value = results[name]
                arguments[place]._obj.value = value
            return 700 if name == self.failing else 0

        return function


class Ffi:
    """Notes the stream that launches go to."""

    def __init__(self) -> None:
        self.stream: int | None = None

    @contextmanager
    def use_raw_stream(self, _device: Any, stream: int) -> Iterator[None]:
        self.stream = stream
        yield
        self.stream = None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: made)
    return made


def test_a_graph_records_what_goes_to_its_stream_and_launches_it(cuda: Cuda):
    ffi, seen = Ffi(), []
    graph = Graph(ffi, "gpu", lambda: seen.append((ffi.stream, list(cuda.asked))))
    recording = ["cudaStreamCreateWithFlags", "cudaStreamBeginCapture"]
    assert seen == [(STREAM, recording)]
    made = [*recording, "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
    assert cuda.asked == [*made, "cudaStreamDestroy"]
    graph.launch()
    graph.launch()
    assert cuda.asked[-2:] == ["cudaGraphLaunch"] * 2
    assert len(seen) == 1
    del graph
    assert cuda.asked[-1] == "cudaGraphExecDestroy"


def test_work_that_fails_ends_the_recording(cuda: Cuda):
    with pytest.raises(ZeroDivisionError):
        Graph(Ffi(), "gpu", lambda: [][1 // 0])
    assert cuda.asked[-2:] == ["cudaStreamEndCapture", "cudaStreamDestroy"]
    assert "cudaGraphInstantiate" not in cuda.asked


def test_the_clock_marks_the_queue_before_and_behind_the_work(cuda: Cuda):
    assert GpuClock().seconds(lambda: cuda.asked.append("work")) == pytest.approx(2e-3)
    told = ["cudaEventRecord", "work", "cudaEventRecord", "cudaEventSynchronize", "cudaEventElapsedTime"]
    assert cuda.asked[2:7] == told
    assert cuda.asked[7:] == ["cudaEventDestroy"] * 2


def test_what_fails_is_named(cuda: Cuda):
    cuda.failing = "cudaGraphLaunch"
    with pytest.raises(GpuError, match="gpu: cudaGraphLaunch failed with CUDA's error 700"):
        call("cudaGraphLaunch", None, None)
    use_gpu(1)
    cuda.failing = "cudaSetDevice"
    with pytest.raises(GpuError, match=r"CUDA cannot use GPU 1 \(error 700\); see `nvidia-smi`"):
        use_gpu(1)
