"""A board serves on, whatever its peers send and however a session ends."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from tvmq import board_sessions
from tvmq.board_sessions import MAGIC, MISMATCH, Lending, next_client, serve_sessions
from tvmq.errors import DeviceError
from tvmq.tracker import PENDING_KEYS, PUT, UPDATE_INFO

HELLO = struct.pack("<ii", MAGIC, 20) + b"client: -timeout=2.5"


class Tracker:
    """What a tracker is told, and the keys that it says are not lent."""

    def __init__(self, *place: Any) -> None:
        self.told: list[Any] = []
        self.pending: list[str] = []

    def tell(self, *message: Any) -> None:
        self.told.append(message)

    def ask(self, *message: Any) -> Any:
        assert message == (PENDING_KEYS,)
        return self.pending

    def close(self) -> None:
        self.told.append("closed")


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def peer(listening: socket.socket, words: bytes) -> socket.socket:
    connection = socket.create_connection(listening.getsockname(), timeout=10)
    connection.sendall(words)
    return connection


def hello(lending: Lending) -> bytes:
    key = f"client:{lending.secret}".encode()
    return struct.pack("<ii", MAGIC, len(key)) + key


def test_the_next_session_begins_after_one_that_left_a_folder_that_is_gone(
    listening: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    began = []

    def serve(connection: socket.socket, address: Any, options: Any, library: None) -> None:
        began.append((os.getcwd(), options))
        if len(began) == 2:
            raise KeyboardInterrupt
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        raise RuntimeError("Child process 7 exited unsuccessfully")

    peers = [peer(listening, HELLO) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        serve_sessions(listening, None, "", serve)
    assert began == [(str(tmp_path), {"timeout": 2.5})] * 2
    assert (
        "a session ended badly (Child process 7 exited unsuccessfully); serving on" in capsys.readouterr().err
    )
    for each in peers:
        each.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no client of TVM"),
        (struct.pack("<ii", MAGIC, 0), "another key"),
        (struct.pack("<ii", MAGIC, 2) + b"\xff\xfe", "decode"),
        (struct.pack("<ii", MAGIC, 1 << 30), "no client of TVM"),
        (struct.pack("<ii", MAGIC, 14) + b"client: -timeo", None),  # no client either, but with the key
        (struct.pack("<ii", MAGIC, 17) + b"client: -timeout=", "could not convert"),
        (b"", "timed out"),
    ],
)
def test_peers_that_are_no_clients_are_sent_away(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: bytes, why: str | None
) -> None:
    monkeypatch.setattr(board_sessions, "HANDSHAKE", 0.2)
    with peer(listening, words), peer(listening, HELLO):
        connection, _, options = next_client(listening, None, "")
        connection.close()
    assert options == ({"timeout": 2.5} if why else {})
    assert (why or "") in capsys.readouterr().err


def test_a_peer_that_says_its_words_slowly_does_not_hold_the_board(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_sessions, "HANDSHAKE", 0.3)
    over = threading.Event()
    with peer(listening, b"") as slow, peer(listening, HELLO):

        def speak() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.1):
                    slow.sendall(b"x")

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        connection, *_ = next_client(listening, None, "")
        connection.close()
        over.set()
        speaker.join()


def test_a_client_learns_the_name_of_the_board_or_that_its_key_is_another(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_sessions, "Tracker", Tracker)
    lending = Lending(("desk", 1), "rpi4", 9090)
    lending.offer()
    monkeypatch.setattr(lending, "offer", lambda: None)
    right = f"client:{lending.secret}".encode()
    with (
        peer(listening, HELLO) as wrong,
        peer(listening, struct.pack("<ii", MAGIC, len(right)) + right) as client,
    ):
        connection, *_ = next_client(listening, lending, "rpi4")
        connection.close()
        assert wrong.recv(100) == struct.pack("<i", MISMATCH)
        assert client.recv(100) == struct.pack("<ii", MAGIC, 11) + b"server:rpi4"


def test_a_key_that_was_lent_and_not_used_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_sessions, "Tracker", Tracker)
    lending = Lending(("desk", 1), "rpi4", 9090)
    tracker: Any = lending._tracker
    assert tracker.told == [(UPDATE_INFO, {"key": "server:rpi4", "addr": (None, 9090)})]
    lending.offer()
    first = lending.secret
    assert tracker.told[1:] == [(PUT, "rpi4", (9090, first), None)]
    tracker.pending = [first]
    for _ in range(10):
        lending.look()
    assert lending.secret == first
    tracker.pending = []
    for _ in range(board_sessions.UNUSED):
        lending.look()
    assert lending.secret != first


def test_a_lost_tracker_is_waited_for(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(board_sessions, "Tracker", Tracker)
    monkeypatch.setattr(board_sessions, "PAUSE", 0.01)
    monkeypatch.setattr(board_sessions, "PERIOD", 0.01)
    lending = Lending(("desk", 1), "rpi4", 9090)
    outage = [DeviceError("gone")]
    before: Any = lending._tracker

    def lost(*place: Any) -> Tracker:
        if outage:
            raise outage.pop()
        return Tracker()

    def ask(*message: Any) -> Any:
        monkeypatch.setattr(board_sessions, "Tracker", lost)
        raise DeviceError("the connection was closed")

    before.ask = ask

    def come() -> None:
        while lending._tracker is before or not lending._tracker.told[1:]:
            pass
        peer(listening, hello(lending)).close()

    def serve(*session: Any) -> None:
        raise KeyboardInterrupt

    threading.Thread(target=come, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        serve_sessions(listening, lending, "rpi4", serve)
    assert before.told[-1] == "closed"
    assert "the tracker was lost (the connection was closed)" in capsys.readouterr().err
