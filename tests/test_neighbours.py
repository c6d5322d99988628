"""Other programs are noticed, one's own work is not."""

import os
import subprocess
import sys
import time

import pytest

from tvmq import neighbours
from tvmq.neighbours import Neighbours

SPIN = "import time\nend = time.time() + 20\nprint(flush=True)\nwhile time.time() < end: pass"


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_busy_program_counts_and_the_own_process_does_not():
    began = time.process_time()
    with Neighbours() as before:
        spin(0.5)
    own = (time.process_time() - began) / 0.5
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with Neighbours() as beside:
            time.sleep(0.5)
        other.kill()
    assert beside.cores > 0.2  # it may have to share its core
    assert before.cores <= len(os.sched_getaffinity(0)) - own + 0.2


@pytest.mark.parametrize(("cores", "threads", "crowded"), [(0.1, 4, False), (0.3, 4, True), (2.1, 2, False)])
def test_threads_wait_where_others_take_their_cores(monkeypatch, cores, threads, crowded):
    monkeypatch.setattr(neighbours.os, "sched_getaffinity", lambda _process: {0, 1, 4, 5})
    watch = Neighbours()
    watch.cores = cores
    assert watch.crowd(threads) is crowded


def test_cores_of_others_do_not_count(monkeypatch, tmp_path):
    def lines(first: int, second: int) -> str:
        busy = {"cpu": first + second, "cpu0": first, "cpu1": second}
        return "".join(f"{name} {ticks} 0 0 9 0 0 0 0 0 0\n" for name, ticks in busy.items())

    stat = tmp_path / "stat"
    monkeypatch.setattr(neighbours, "STAT", stat)
    monkeypatch.setattr(neighbours.os, "sched_getaffinity", lambda _process: {0})
    stat.write_text(lines(100, 100))
    with Neighbours() as watch:
        stat.write_text(lines(100, 100_000))
    assert watch.cores == 0


def test_without_the_kernels_counts_nobody_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "STAT", tmp_path / "absent")
    with Neighbours() as watch:
        pass
    assert watch.cores == 0
