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
from tvmq import board, cli_devices
from tvmq.board_sessions import MAGIC
from tvmq.cli import main
from tvmq.compiled import CompiledModel
from tvmq.device import Device, Machine
from tvmq.errors import DeviceError, ProgramCrashError, UsageError
from tvmq.gpu import Gpu, Gpus
from tvmq.target import load_profile
from tvmq.tracker import Board, boards_of


def test_addresses_that_cannot_be_had_are_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            DeviceError, match=f"serve: 127.0.0.1:{port} cannot be had .*; give another --port"
        ):
            board.serve("127.0.0.1", port, "", "")
    for host in ("no-such-host.invalid", "192.0.2.1"):  # no machine has the second, RFC 5737
        with pytest.raises(DeviceError, match=f"serve: {host}:{port} cannot be had .*; give another --host"):
            board.serve(host, port, "", "")
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


def test_devices_tells_which_gpus_free_boards_have_and_tune_for(monkeypatch, capsys):
    features = tuple(load_profile("t4").features)
    machine = Machine("x86_64", "EPYC", features, 8, (Gpu("Tesla T4", (7, 5), 13),), "", "", "")
    asked = []

    def ask(self, request, limit):
        asked.append(self.key)
        if self.key == "gone":
            raise DeviceError("lost")
        return machine.to_json()

    found = [Board("t4", "a:1", False), Board("t4", "b:1", True), Board("full", "c:1", False)]
    monkeypatch.setattr(cli_devices, "boards_of", lambda *_: (*found, Board("gone", "d:1", True)))
    monkeypatch.setattr(Device, "ask", ask)
    monkeypatch.setattr(cli_devices, "these_gpus", lambda: Gpus((Gpu("GT 710", (3, 5), 11),)))
    assert main(["devices", "--tracker", "desk:1"]) == 0
    table = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any("GT 710" in line and "no target fits" in line for line in table)
    assert sum("Tesla T4" in line and "tunes for t4" in line for line in table) == 2
    assert asked == ["t4", "gone"]  # one of a key; who is busy is left alone
    assert main(["devices", "--tracker", "desk:1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [board["gpu_targets"] for board in data["boards"]] == [["t4"], ["t4"], [], []]
    cpus = [board["machine"] and board["machine"]["cpu"] for board in data["boards"]]
    assert cpus == ["EPYC", "EPYC", None, None]
    assert data["here"]["gpus"][0]["name"] == "GT 710"


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
