"""This machine answers as a board does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tvmq import own_process
from tvmq.device import Machine
from tvmq.errors import ArtifactError, ProgramCrashError
from tvmq.machine import this_machine
from tvmq.tune.here import ThisMachine

HERE = ThisMachine()


def test_it_answers_and_tells_errors_as_its_own():
    assert Machine.from_json(HERE.ask({"do": "machine"})).architecture == this_machine()
    assert len(HERE.boards()) == 1
    with pytest.raises(ArtifactError, match=r"^here: m"):
        HERE.ask({"do": "verify", "artifact": "m"}, {"m": b"no artifact"})


def test_what_does_not_end_is_ended():
    with pytest.raises(ProgramCrashError, match=r"no end within 0\.01 s"):
        HERE.ask({"do": "machine"}, limit=0.01)


def test_kernels_that_share_a_gpu_are_not_timed_together(monkeypatch: pytest.MonkeyPatch):
    busy = threading.Lock()

    def alone(_request: str, _folder: str) -> str:
        assert busy.acquire(blocking=False)
        time.sleep(0.02)
        busy.release()
        return '{"value": 1}'

    monkeypatch.setattr(own_process, "answer", alone)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(HERE.ask, [{"do": "time"}] * 3)) == [1, 1, 1]
