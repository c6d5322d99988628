import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from tests import tiny_program
from tvmq import board
from tvmq.board_sessions import MAGIC
from tvmq.cli import main
from tvmq.compiled import CompiledModel
from tvmq.device import Device
from tvmq.errors import DeviceError, ProgramCrashError, UsageError
from tvmq.tracker import boards_of


def asked(**request):
    return json.loads(board.answer(json.dumps(request)))


def test_a_board_tells_what_it_is():
    value = asked(do="machine")["value"]
    assert set(value) == {"architecture", "cpu", "features", "threads", "tvm", "tvm_ffi", "tvmq"}


def test_errors_are_answers(tmp_path):
    (tmp_path / "m").write_text("no artifact")
    assert asked(do="verify", artifact=str(tmp_path / "m"))["error"]["kind"] == "ArtifactError"
    assert "'dance' is unknown" in asked(do="dance")["error"]["message"]


@pytest.mark.parametrize(
    ("code", "how"), [("os.kill(os.getpid(), 4)", "SIGILL"), ("sys.exit('why')", "exit code 1: why")]
)
def test_a_crash_is_an_answer(monkeypatch, tmp_path, code, how):
    (tmp_path / "crash").write_text(f"#!{sys.executable}\nimport os, sys\n{code}\n")
    (tmp_path / "crash").chmod(0o755)
    monkeypatch.setattr(board.sys, "executable", str(tmp_path / "crash"))
    assert how in asked(do="machine")["crash"]


def test_a_program_that_does_not_end_is_ended(monkeypatch, tmp_path):
    (tmp_path / "endless").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    (tmp_path / "endless").chmod(0o755)
    monkeypatch.setattr(board.sys, "executable", str(tmp_path / "endless"))
    assert asked(do="machine", limit=0.3) == {"crash": "no end within 0.3 s"}


def test_addresses_that_cannot_be_had_are_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=f"serve: 127.0.0.1:{port} cannot be had"):
            board.serve("127.0.0.1", port, "", "")
    for tracker, key in (("127.0.0.1:1", ""), ("", "rpi4")):
        with pytest.raises(UsageError, match="--tracker and --key go together"):
            board.serve("127.0.0.1", 1, tracker, key)
    with pytest.raises(UsageError, match=r"clients that cannot reach 127.0.0.1; give --host 0\.0\.0\.0"):
        board.serve("127.0.0.1", 1, "desk.local:1", "rpi4")
    with pytest.raises(DeviceError, match="no tracker answers at no-such-host"):
        board.serve("0.0.0.0", free_port(), "no-such-host.invalid", "rpi4")
    assert main(["serve", "--tracker", "127.0.0.1:1"]) == 2
    assert (
        "only this machine reaches it; whoever reaches this port can run any code" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_only_the_loopback_is_near(host, near):
    assert board.is_loopback(host) == near


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def started(*arguments):
    return subprocess.Popen([sys.executable, "-m", "tvmq", *map(str, arguments)], stderr=subprocess.PIPE)


def waited_for(done, seconds=120):
    ends = time.monotonic() + seconds
    while True:
        try:
            return done()
        except (DeviceError, AssertionError):
            assert time.monotonic() < ends
            time.sleep(0.2)


@pytest.mark.slow
def test_two_boards_of_a_tracker_serve_and_one_that_dies_is_replaced(tmp_path, capsys):
    place, path = free_port(), tmp_path / "m.tvmq"
    CompiledModel(tiny_program.built(), tiny_program.description()).save(path)
    processes = [started("tracker", "--port", place)]
    try:
        waited_for(lambda: boards_of("127.0.0.1", place))
        serve = [
            ["serve", "--port", free_port(), "--tracker", f"127.0.0.1:{place}", "--key", "here"] for _ in "ab"
        ]
        processes += [started(*arguments) for arguments in serve]

        def both():
            assert len(boards_of("127.0.0.1", place)) == 2

        waited_for(both)
        here = f"tracker:127.0.0.1:{place}/here"
        assert main(["devices", "--tracker", f"127.0.0.1:{place}", "--json"]) == 0
        assert [b["key"] for b in json.loads(capsys.readouterr().out)["boards"]] == ["here", "here"]
        assert main(["verify", str(path), "--device", here, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ok"]
        assert main(["bench", str(path), "--device", here, "--repeat", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["runs"] == 3
        processes[1].send_signal(signal.SIGKILL)
        processes[1].wait()
        assert Device.parse(here).machine().threads >= 1
        with pytest.raises((DeviceError, ProgramCrashError)):
            Device.parse(here).ask({"do": "verify", "artifact": os.devnull}, limit=0.01)
    finally:
        for process in processes:
            process.terminate()
            process.communicate(timeout=30)


def dropped_in_a_packet(port):
    """Begin a session and leave it in the middle of a packet."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(struct.pack("<ii", MAGIC, 7) + b"client:")
        assert connection.recv(100)[:4] == struct.pack("<i", MAGIC)
        connection.sendall(struct.pack("<Q", 1000) + b"abc")


@pytest.mark.slow
def test_a_board_without_a_tracker_serves_on_after_a_session_that_ended_badly(tmp_path, capsys):
    port, path = free_port(), tmp_path / "m.tvmq"
    CompiledModel(tiny_program.built(), tiny_program.description()).save(path)
    here = f"rpc:127.0.0.1:{port}"
    process = started("serve", "--port", port)
    try:
        waited_for(lambda: Device.parse(here).machine())
        dropped_in_a_packet(port)
        dropped_in_a_packet(port)
        assert main(["verify", str(path), "--device", here, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ok"]
    finally:
        process.terminate()
        process.communicate(timeout=30)
