"""TVM's RPC tracker, which knows boards and lends them: its protocol, and what it says."""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tvmq.errors import DeviceError, UsageError
from tvmq.record import Record

DEFAULT_PORT = 9190  # of TVM's tracker
MAGIC, SUCCESS = 0x2F271, 0
PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING_KEYS = 3, 4, 5, 6, 7
LAST_PORT = 65535
ADDRESS = re.compile(r"(?:(?P<host>[^:\[\]]+)|\[(?P<six>[^\[\]]+)\])(?::(?P<port>[0-9]{1,5}))?")
SOON = 1e-3  # seconds; 0 would mean not to wait at all
CONNECT = 5.0  # seconds for a word of the tracker


@dataclass(frozen=True, slots=True)
class Board(Record):
    """A board that a tracker knows."""

    key: str
    address: str
    free: bool | None  # None: the tracker does not tell which of several


class Tracker:
    """A connection to a tracker. When it closes, the tracker drops what it was told or asked by it."""

    def __init__(self, host: str, port: int) -> None:
        """Raise DeviceError where no tracker answers."""
        self._place = host, port
        try:
            self._connection = socket.create_connection((host, port), timeout=CONNECT)
        except (OSError, UnicodeError) as error:
            raise self._silent(error) from error
        try:
            self._connection.sendall(struct.pack("<i", MAGIC))
            (magic,) = struct.unpack("<i", received(self._connection, 4))
        except OSError as error:
            self.close()
            raise self._silent(error) from error
        if magic != MAGIC:
            self.close()
            raise DeviceError(f"device: {host}:{port} is no tracker of TVM; check the port")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def ask(self, *message: Any) -> Any:
        """Return the answer to a message; raise DeviceError without one."""
        self.send(*message)
        return self.answer()

    def tell(self, *message: Any) -> None:
        """Send what the tracker has only to take note of; raise DeviceError where it does not."""
        if self.ask(*message) != SUCCESS:
            raise self._silent("it refuses a board")

    def send(self, *message: Any) -> None:
        """Send a message whose answer `answer` reads."""
        text = json.dumps(message).encode()
        try:
            self._connection.sendall(struct.pack("<i", len(text)) + text)
        except OSError as error:
            raise self._silent(error) from error

    def has_answered(self, seconds: float) -> bool:
        """Wait so long at most for the begin of an answer; return whether it is there."""
        return bool(select.select([self._connection], [], [], seconds)[0])

    def answer(self) -> Any:
        """Return the next answer, a JSON value; raise DeviceError without one."""
        try:
            (size,) = struct.unpack("<i", received(self._connection, 4))
            return json.loads(received(self._connection, size))
        except (OSError, ValueError) as error:
            raise self._silent(error) from error

    def _silent(self, why: object) -> DeviceError:
        host, port = self._place
        return DeviceError(
            f"device: no tracker answers at {host}:{port} ({why}); "
            f"start one by `tvmq tracker --host {host} --port {port}`"
        )


def received(connection: socket.socket, size: int, ends: float | None = None) -> bytes:
    """Return so many bytes; raise OSError where they do not come, all of them before `ends` (monotonic)."""
    data = b""
    while len(data) < size:
        if ends is not None:
            connection.settimeout(max(ends - time.monotonic(), SOON))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return data


def address_of(text: str, port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Read "host:port", "[IPv6]:port" or a host alone, whose port is then the one given; raise UsageError."""
    found = ADDRESS.fullmatch(text)
    number = int(found["port"] or port) if found else 0
    if not found or not 1 <= number <= LAST_PORT:
        raise UsageError(
            f"device: {text!r} given, HOST:PORT is wanted, as 127.0.0.1:{port} or [::1]:{port}; "
            f"ports go from 1 to {LAST_PORT}"
        )
    return found["six"] or found["host"], number


def boards_of(host: str, port: int) -> tuple[Board, ...]:
    """Return the boards that a tracker knows; raise DeviceError where none answers."""
    with Tracker(host, port) as tracker:
        answer = tracker.ask(SUMMARY)
    try:
        state, summary = answer
        boards = _boards(summary) if state == SUCCESS else []
    except (TypeError, ValueError, KeyError) as error:
        raise DeviceError(f"device: {host}:{port} is no tracker of TVM; check the port") from error
    if state != SUCCESS:
        raise DeviceError(f"device: the tracker {host}:{port} gives no list of its boards; restart it")
    return tuple(sorted(boards, key=lambda board: (board.key, board.address)))


def _boards(summary: Mapping[str, Any]) -> list[Board]:
    boards, queues = [], summary["queue_info"]
    entries = [(row["key"].removeprefix("server:"), row["addr"]) for row in summary["server_info"]]
    for key, address in entries:
        alike = sum(other == key for other, _ in entries)
        free = int(queues.get(key, {}).get("free", 0))
        known = free > 0 if alike == 1 or free in (0, alike) else None
        boards.append(Board(key, ":".join(str(part) for part in address), known))
    return boards
