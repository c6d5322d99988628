"""This machine answers as a board does."""

from __future__ import annotations

import pytest

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
