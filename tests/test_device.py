import json
import threading

import pytest

from tvmq import device
from tvmq.device import Device, Machine
from tvmq.environment import FFI_VERSION, TVM_VERSION
from tvmq.errors import ArtifactError, DeviceError, LostBoardWarning, ProgramCrashError, UsageError
from tvmq.gpu import Gpu
from tvmq.target import load_profile
from tvmq.tracker import REQUEST, Board

HERE = Device("127.0.0.1", 1, "rpi4")


@pytest.fixture
def answers(monkeypatch):
    """Let boards give these answers in turn: an exception is a lost board."""
    given = []

    def asked(self, lent, request, files, limit):
        found = given.pop(0)
        if callable(found):
            found = found()
        if isinstance(found, Exception):
            raise device._LostError(str(found))
        return json.dumps(found)

    monkeypatch.setattr(Device, "_asked", asked)
    monkeypatch.setattr(Device, "_lent", lambda self: ("127.0.0.1", 1, "rpi4:0.5"))
    monkeypatch.setattr(device, "BACK_OFF", 0)
    monkeypatch.setattr(Device, "boards", lambda self: (Board("rpi4", "", True),))
    return given


def test_a_device_is_read_and_written():
    assert str(Device.parse("tracker:board.local:9190/rpi4")) == "tracker:board.local:9190/rpi4"
    assert Device.parse("tracker:board.local/rpi4").port == 9190
    assert str(Device.parse("rpc:board.local")) == "rpc:board.local:9090"
    with pytest.raises(DeviceError, match=r"no board answers at 127\.0\.0\.1:1 .*start `tvmq serve` there"):
        Device.parse("rpc:127.0.0.1:1").machine()


@pytest.mark.parametrize(
    "text",
    [
        "rpi4",
        "tracker:host:1",
        "tracker:/rpi4",
        "tracker:host:x/rpi4",
        "ssh:host:1/rpi4",
        "rpc:host/rpi4",
        "rpc:",
    ],
)
def test_what_is_no_device_is_refused(text):
    with pytest.raises(UsageError, match="wanted"):
        Device.parse(text)


def test_a_processor_is_the_cpu_or_the_gpu_that_fits():
    gpus = Gpu("Quadro", (6, 1), 13), Gpu("T4", (7, 5), 13)
    machine = Machine("x86_64", "EPYC", (), 8, gpus, "", "", "")
    assert Machine.from_json(machine.to_json()) == machine
    assert machine.processor(load_profile("t4")) == "T4"
    assert machine.processor(load_profile("x86_avx2")) == "EPYC"


def test_a_lost_board_is_given_up_and_another_one_asked(answers):
    answers += [ConnectionError("gone"), {"value": 7}]
    with pytest.warns(LostBoardWarning, match=r"was lost \(gone\); attempt 2 of 3 follows"):
        assert HERE.ask({"do": "machine"}) == 7
    answers += [ConnectionError("gone")] * 3
    with (
        pytest.warns(LostBoardWarning, match="attempt"),
        pytest.raises(DeviceError, match="was lost 3 times, the last time: gone"),
    ):
        HERE.ask({"do": "machine"})


def test_a_board_that_is_lent_by_a_tracker_says_how_to_name_it(answers):
    answers.append(OSError("cannot find server that matches key=client: -timeout=620.0"))
    with pytest.raises(DeviceError, match=r"rpc:here:9 is lent by its tracker alone; name it as tracker:"):
        Device("here", 9, "").ask({"do": "machine"})


def test_a_board_that_never_answers_is_a_lost_one(answers, monkeypatch):
    monkeypatch.setattr(device, "GRACE", 0.05)
    never = threading.Event()
    answers += [lambda: never.wait(5), {"value": 7}]
    with pytest.warns(LostBoardWarning, match=r"no answer within 0\.1 s"):
        assert HERE.ask({"do": "machine"}, limit=0.05) == 7
    never.set()


class Desk:
    """A tracker whose boards come and go: the keys that it knows at each look, and what it lends then."""

    def __init__(self, known, lent=None):
        self.known, self.lent, self.open = list(known), lent, 0

    def __call__(self, *place):
        return self

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *_):
        self.open -= 1

    def send(self, *message):
        assert message == (REQUEST, "rpi4", "", 1)

    def has_answered(self, seconds):
        return not self.known

    def answer(self):
        return [0, self.lent]

    def boards(self, *place):
        return [Board(key, "", True) for key in self.known.pop(0)]


@pytest.fixture
def desk(monkeypatch):
    def made(*arguments, patience=600.0, returns=30.0):
        found = Desk(*arguments)
        monkeypatch.setattr(device, "Tracker", found)
        monkeypatch.setattr(device, "boards_of", found.boards)
        monkeypatch.setattr(device, "PATIENCE", patience)
        monkeypatch.setattr(device, "RETURN", returns)
        return found

    return made


def test_a_board_that_is_away_is_waited_for(desk):
    found = desk([[], ["rpi5"], []], ["10.0.0.4", 9090, "rpi4:0.5"])
    assert HERE._lent() == ("10.0.0.4", 9090, "rpi4:0.5")
    assert found.open == 0


def test_a_request_that_is_given_up_is_taken_back(desk):
    found = desk([[]] * 9, returns=0.0)
    with pytest.raises(device._LostError, match="the tracker knew none for 0 s"):
        HERE._lent()
    assert found.open == 0
    found = desk([["rpi4"]] * 9, patience=0.0)
    with pytest.raises(device._LostError, match="no board was free within 0 s"):
        HERE._lent()
    assert found.open == 0


def test_an_absent_board_is_a_lost_attempt_while_working_and_said_at_once_before(desk, monkeypatch):
    monkeypatch.setattr(device, "BACK_OFF", 0)
    desk([[]] * 9, returns=0.0)
    with pytest.warns(LostBoardWarning), pytest.raises(DeviceError, match="was lost 3 times"):
        HERE.ask({"do": "time"})
    for question in (HERE.machine, lambda: HERE.ask_about(b"", {})):
        with pytest.raises(DeviceError, match="knows no board 'rpi4'"):
            question()


def test_a_crash_is_an_answer_and_not_asked_for_again(answers):
    answers += [{"crash": "ended by SIGILL"}]
    with pytest.raises(ProgramCrashError, match="ended by SIGILL"):
        HERE.ask({"do": "verify"})
    assert answers == []


def test_an_error_of_tvmq_on_the_board_is_raised_here(answers):
    answers += [{"error": {"kind": "ArtifactError", "message": "needs asimddp"}}]
    with pytest.raises(ArtifactError, match="on the board: needs asimddp"):
        HERE.ask({"do": "verify"})


def test_a_board_that_cannot_run_a_profile_is_refused_with_what_it_lacks(answers):
    pi4 = {"architecture": "aarch64", "cpu": "Raspberry Pi 4", "features": ["asimd"], "threads": 4,
           "gpus": [], "tvm": TVM_VERSION, "tvm_ffi": FFI_VERSION, "tvmq": "0.1.0"}  # fmt: skip
    answers += [{"value": pi4}] * 3 + [{"value": pi4 | {"tvm": "0.26.0"}}]
    assert HERE.require(load_profile("rpi4")).cpu == "Raspberry Pi 4"
    with pytest.raises(DeviceError, match=r"Raspberry Pi 4\) lacks asimddp, .*which 'arm_dotprod' needs"):
        HERE.require(load_profile("rpi5"))
    with pytest.raises(DeviceError, match="is a machine of aarch64, 'x86_avx2' is for x86_64"):
        HERE.require(load_profile("x86_avx2"))
    with pytest.raises(DeviceError, match=r"has a tvmq 0\.1\.0 for apache-tvm 0\.26\.0"):
        HERE.require(load_profile("rpi4"))
