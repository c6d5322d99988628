"""Boards on the network, lent by TVM's RPC tracker: ask one to do something, and never wait for ever.

What is asked is a JSON object, and so is the answer (see board.py, run there by `tvmq serve`). A board that
is lost or does not answer is given up and another one asked; a program that crashes there is an answer.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from tvmq.errors import DeviceError, ProgramCrashError, UsageError
from tvmq.record import Record
from tvmq.target import TargetProfile

DEFAULT_PORT = 9190  # of TVM's tracker
FUNCTION = "tvmq.board"  # what a board registers
ARTIFACT = "model.tvmq"  # a file there
TRACKER_MAGIC, SUMMARY, SUCCESS = 0x2F271, 6, 0  # of the tracker's protocol
ATTEMPTS = 3  # boards to ask
PATIENCE = 600.0  # seconds for an answer, upload and waiting for a free board included
GRACE = 20.0  # seconds after which a board that outlived its own limit counts as lost
CONNECT = 5.0  # seconds for the tracker's first word

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Machine(Record):
    """What a machine says of itself."""

    architecture: str
    cpu: str
    features: tuple[str, ...]
    threads: int
    tvm: str
    tvm_ffi: str
    tvmq: str


@dataclass(frozen=True, slots=True)
class Board(Record):
    """A board that a tracker knows."""

    key: str
    address: str
    free: bool | None  # None: the tracker does not tell which of several


@dataclass(frozen=True, slots=True)
class Device:
    """All boards of one key at one tracker."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "tracker:host:port/key"; raise UsageError."""
        kind, _, rest = text.partition(":")
        address, _, key = rest.partition("/")
        if kind != "tracker" or not key or not address:
            raise UsageError(f"device: {text!r} given, 'tracker:HOST:PORT/KEY' is wanted; see `tvmq devices`")
        host, port = tracker_address(address)
        return cls(host, port, key)

    @classmethod
    def of(cls, given: str | Device) -> Device:
        """Return a device as it is, or read it."""
        return given if isinstance(given, Device) else cls.parse(given)

    def __str__(self) -> str:
        return f"tracker:{self.host}:{self.port}/{self.key}"

    def machine(self) -> Machine:
        """Return what the board says of itself; boards of one key are taken to be alike."""
        return Machine.from_json(self.ask({"do": "machine"}), f"the board {self.key!r}")

    def require(self, profile: TargetProfile) -> Machine:
        """Return what the board says of itself; raise DeviceError where it cannot run the profile's code."""
        board = self.machine()
        if board.architecture != profile.architecture:
            raise DeviceError(
                f"device: {self} is a machine of {board.architecture}, {profile.name!r} is for "
                f"{profile.architecture}; give the target that fits the board (see `tvmq targets`)"
            )
        lacking = profile.missing(board.features)
        if lacking:
            raise DeviceError(
                f"device: {self} ({board.cpu}) lacks {', '.join(lacking)}, which {profile.name!r} needs; "
                f"give the target that fits the board (see `tvmq targets`)"
            )
        return board

    def ask_about(self, artifact: bytes, request: Mapping[str, Any]) -> Any:
        """Return the answer about an artifact; raise what `ask` does."""
        return self.ask({**request, "artifact": ARTIFACT}, {ARTIFACT: artifact})

    def boards(self) -> tuple[Board, ...]:
        """Return the boards of this key; raise DeviceError without one."""
        known = boards_of(self.host, self.port)
        found = tuple(board for board in known if board.key == self.key)
        if not found:
            keys = ", ".join(sorted({board.key for board in known})) or "none"
            raise DeviceError(
                f"device: the tracker {self.host}:{self.port} knows no board {self.key!r}, it has: {keys}; "
                f"start one by `tvmq serve --tracker {self.host}:{self.port} --key {self.key}`"
            )
        return found

    def ask(self, request: Mapping[str, Any], files: Files | None = None, limit: float = PATIENCE) -> Any:
        """Return a board's answer, a JSON value.

        files: what the request names, sent before it. limit: seconds that the board may work. Raises
        DeviceError where no board answers, ProgramCrashError for a program that crashed or took too long
        there, and the errors of tvmq that the board met.
        """
        reasons: list[str] = []
        for _ in range(ATTEMPTS):
            self.boards()
            try:
                answer = _within(lambda: self._asked(request, files or {}, limit), limit + GRACE)
            except _LostError as error:
                reasons.append(str(error))
                continue
            return _answered(json.loads(answer))
        raise DeviceError(
            f"device: {self} was lost {ATTEMPTS} times, the last time: {reasons[-1]}; "
            f"look at the board and at its `tvmq serve`"
        )

    def _asked(self, request: Mapping[str, Any], files: Files, limit: float) -> str:
        from tvm import rpc

        try:
            session = rpc.connect_tracker(self.host, self.port).request(
                self.key, max_retry=1, session_timeout=limit + GRACE
            )
            for name, data in files.items():
                session.upload(bytearray(data), name)
            return str(session.get_function(FUNCTION)(json.dumps({**request, "limit": limit})))
        except AttributeError as error:
            raise UsageError(
                f"device: {self} is a plain server of TVM, `tvmq serve` is wanted on the board ({error})"
            ) from error
        except Exception as error:  # TVM has no class of its own for a lost connection
            said = " ".join(str(error).split())[-200:]
            raise _LostError(f"{type(error).__name__}: {said}") from error


def tracker_address(text: str) -> tuple[str, int]:
    """Read "host:port" or "host"; raise UsageError."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdigit():
        raise UsageError(f"tracker: {text!r} given, HOST:PORT is wanted, as 127.0.0.1:{DEFAULT_PORT}")
    return host, int(port)


def boards_of(host: str, port: int) -> tuple[Board, ...]:
    """Return the boards that a tracker knows; raise DeviceError where none answers."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT) as connection:
            connection.sendall(struct.pack("<i", TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", _received(connection, 4))
            if magic != TRACKER_MAGIC:
                raise DeviceError(f"device: {host}:{port} is no tracker of TVM; check the port")
            text = json.dumps([SUMMARY]).encode()
            connection.sendall(struct.pack("<i", len(text)) + text)
            (size,) = struct.unpack("<i", _received(connection, 4))
            state, summary = json.loads(_received(connection, size))
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise DeviceError(
            f"device: no tracker answers at {host}:{port} ({error}); "
            f"start one by `tvmq tracker --host {host} --port {port}`"
        ) from error
    if state != SUCCESS:
        raise DeviceError(f"device: the tracker {host}:{port} gives no list of its boards; restart it")
    return tuple(sorted(_boards(summary), key=lambda board: (board.key, board.address)))


def _boards(summary: Mapping[str, Any]) -> list[Board]:
    boards, queues = [], summary["queue_info"]
    entries = [(row["key"].removeprefix("server:"), row["addr"]) for row in summary["server_info"]]
    for key, address in entries:
        alike = sum(other == key for other, _ in entries)
        free = int(queues.get(key, {}).get("free", 0))
        known = free > 0 if alike == 1 or free in (0, alike) else None
        boards.append(Board(key, ":".join(str(part) for part in address), known))
    return boards


class _LostError(Exception):
    """A board, or the way to it, failed."""


def _answered(answer: Mapping[str, Any]) -> Any:
    if "crash" in answer:
        raise ProgramCrashError(f"device: {answer['crash']}")
    if "error" in answer:
        from tvmq import errors

        kind = getattr(errors, str(answer["error"]["kind"]), errors.DeviceError)
        raise kind(f"on the board: {answer['error']['message']}")
    return answer["value"]


def _within(work: Callable[[], str], limit: float) -> str:
    """Return what work returns, or raise _LostError after `limit` seconds; the thread is then left behind."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="tvmq.device", daemon=True)
    thread.start()
    ends = time.monotonic() + limit
    while thread.is_alive() and time.monotonic() < ends:
        thread.join(0.1)  # in parts, so that Ctrl-C is heard
    if not outcome:
        raise _LostError(f"no answer within {limit:g} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return str(outcome[0])


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return data
