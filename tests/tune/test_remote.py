"""Kernels are timed on boards; here the boards are this machine, without a network."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedule.pool import pool_of
from tests.tune.synthetic import CostBench, tuned
from tests.tune.test_measure import WEIGHT, sum_of
from tvmq.board_worker import done
from tvmq.device import Device, answered
from tvmq.errors import DeviceError, GpuError, ProgramCrashError
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Space
from tvmq.target import load_profile
from tvmq.tracker import Board
from tvmq.tune.measure import BrokenCandidateError
from tvmq.tune.remote import BoardBench

WAYS = ("right", "slow", "wrong", "unbuilt")


class Here(Device):
    """Boards that are this process."""

    def boards(self) -> tuple[Board, ...]:
        return (Board("here", "", True),)

    def ask(self, request: Mapping[str, Any], files: Any = None, limit: float = 1) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            there = {**request, "operands": f"{folder}/{request['operands']}"}
            there["libraries"] = [f"{folder}/{name}" for name in request["libraries"]]
            return answered(done(there))


@pytest.fixture(scope="module")
def bench() -> Any:
    made = Kernel(("sum",), "sum", (None, None), sum_of, Space({"way": WAYS}, {"way": "right"}))
    with pool_of(1):
        yield BoardBench(Use(made, 1, (None, WEIGHT)), load_profile("native"), Here("", 0, "here"), 1)


def test_a_slower_kernel_is_found_slower(bench: BoardBench):
    candidate, default = bench.trial({"way": "slow"})
    assert candidate > 3 * default > 0
    default, same, slow = bench.final([{"way": "right"}, {"way": "slow"}])
    assert slow > 3 * max(default, same)


@pytest.mark.parametrize(("way", "why"), [("wrong", "other bits"), ("unbuilt", "no such tile")])
def test_what_is_broken_is_told_with_the_reason(bench: BoardBench, way: str, why: str):
    with pytest.raises(BrokenCandidateError, match=why):
        bench.trial({"way": way})


def test_expected_trials_have_begun_when_they_are_asked_for(
    bench: BoardBench, monkeypatch: pytest.MonkeyPatch
):
    bench.expect([{"way": "slow"}, {"way": "unbuilt"}])
    assert [future.result()["digests"] != [] for future in bench._begun.values()] == [True]
    monkeypatch.setattr(bench, "_built", lambda _: pytest.fail("built twice"))
    assert min(bench.trial({"way": "slow"})) > 0


def test_trials_that_have_not_begun_do_not_delay_the_last_comparison(bench: BoardBench):
    began = threading.Event()
    ends = threading.Event()
    bench._pool.submit(lambda: (began.set(), ends.wait()))
    began.wait()
    bench.expect([{"way": "slow"}])
    (waiting,) = bench._begun.values()
    assert min(bench.final([{"way": "right"}])) > 0
    ends.set()
    assert waiting.cancelled()


def test_a_full_disk_is_no_fault_of_the_kernel(
    bench: BoardBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench, "_library", full)
    with pytest.raises(OSError, match="No space left"):
        bench.trial({"way": "right"})

    class Full(CostBench):
        def trial(self, decisions: Any) -> tuple[float, float]:
            full()
            raise AssertionError

    with pytest.raises(OSError, match="No space left"):
        tuned(tmp_path / "db", trials=8, benches=Full)
    assert '"event": "failed"' not in (tmp_path / "db").read_text()


@pytest.mark.parametrize(
    "error", [ProgramCrashError("device: ended by SIGILL"), GpuError("on the board: gpu: SIGILL")]
)
def test_a_kernel_that_crashes_the_board_is_a_broken_one(
    bench: BoardBench, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def crash(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Here, "ask", crash)
    with pytest.raises(BrokenCandidateError, match="SIGILL"):
        bench.trial({"way": "right"})
    with pytest.raises(BrokenCandidateError, match="SIGILL"):
        bench.final([{"way": "right"}])


def test_a_board_whose_gpu_does_not_run_the_default_says_nothing_of_a_trial(
    bench: BoardBench, monkeypatch: pytest.MonkeyPatch
):
    def lost(*_: Any) -> None:
        raise DeviceError("tune: the GPU does not run the default kernel")

    monkeypatch.setattr(Here, "ask", lost)
    with pytest.raises(DeviceError, match="default kernel"):
        bench.trial({"way": "right"})


def test_a_gpu_that_a_board_does_not_have_is_said():
    kernel = {"do": "time", "operands": "x", "libraries": [], "gpu": ["cuda_13", "sm_90"]}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/x.npz", np.zeros(1))
        answer = done({**kernel, "operands": f"{folder}/x.npz"})
    assert answer["error"]["kind"] == "DeviceError"
    assert "no GPU here has cuda_13, sm_90" in answer["error"]["message"]


def test_when_all_boards_are_lost_the_trials_so_far_are_kept(tmp_path: Path):
    class Lost(CostBench):
        def trial(self, decisions: Any) -> tuple[float, float]:
            if self.calls == 3:
                raise DeviceError("device: lost")
            return super().trial(decisions)

    path = tmp_path / f"db{os.getpid()}"
    with pytest.raises(DeviceError, match="lost"):
        tuned(path, trials=8, benches=Lost)
    lines = path.read_text()
    assert lines.count('"event": "measured"') + lines.count('"event": "failed"') == 3
    assert lines.count('"event": "interrupted"') == 1
