"""Boards on the network, lent by TVM's RPC tracker: ask one to do something, and never wait for ever.

What is asked is a JSON object, and so is the answer (see board.py, run there by `tvmq serve`). A board that
is lost or does not answer is given up and another one asked, or the same once it is back; a program that
crashes there is an answer.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from tvmq.environment import FFI_VERSION, TVM_VERSION
from tvmq.errors import DeviceError, LostBoardWarning, ProgramCrashError, UsageError
from tvmq.gpu import Gpu, fitting
from tvmq.record import Record
from tvmq.target import TargetProfile
from tvmq.tracker import CONNECT, REQUEST, Board, Tracker, address_of, boards_of
from tvmq.tracker import DEFAULT_PORT as TRACKER_PORT

FUNCTION = "tvmq.board"  # what a board registers
ARTIFACT = "model.tvmq"  # a file there
BOARD_PORT = 9090  # that `tvmq serve` listens on
OTHER_KEY = "matches key"  # what TVM says of a server that wants its tracker's
ATTEMPTS = 3  # boards to ask
BACK_OFF = 2.0  # seconds before another one is asked; four times as many before the next
PATIENCE = 600.0  # seconds for a free board, and for its answer
GRACE = 20.0  # seconds after which a board that outlived its own limit counts as lost
RETURN = 30.0  # seconds for a board that the tracker does not know, as one that starts anew
PERIOD = 2.0  # seconds between looks at the tracker's list while waiting

Files = Mapping[str, bytes]
_Lent = tuple[str, int, str]  # where a board listens, and the key that lets in


@dataclass(frozen=True, slots=True)
class Machine(Record):
    """What a machine says of itself."""

    architecture: str
    cpu: str
    features: tuple[str, ...]
    threads: int
    gpus: tuple[Gpu, ...]
    tvm: str
    tvm_ffi: str
    tvmq: str

    def processor(self, profile: TargetProfile) -> str:
        """Return the name of what computes a profile's kernels there: the CPU's, or that of its GPU."""
        number = None if profile.capability is None else fitting(profile.features, self.gpus)
        return self.cpu if number is None else self.gpus[number].name


@dataclass(frozen=True, slots=True)
class Device:
    """All boards of one key at one tracker; or, without a key, the one board that listens there itself."""

    host: str
    port: int
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "tracker:host:port/key" or "rpc:host:port"; raise UsageError."""
        kind, _, rest = text.partition(":")
        address, _, key = rest.partition("/")
        if not address or kind not in ("tracker", "rpc") or bool(key) != (kind == "tracker"):
            raise UsageError(
                f"device: {text!r} given, 'tracker:HOST:PORT/KEY' or 'rpc:HOST:PORT' is wanted; "
                f"see `tvmq serve --help`"
            )
        return cls(*address_of(address, TRACKER_PORT if key else BOARD_PORT), key)

    @classmethod
    def of(cls, given: str | Device) -> Device:
        """Return a device as it is, or read it."""
        return given if isinstance(given, Device) else cls.parse(given)

    def __str__(self) -> str:
        place = f"{self.host}:{self.port}"
        return f"tracker:{place}/{self.key}" if self.key else f"rpc:{place}"

    def machine(self) -> Machine:
        """Return what the board says of itself; boards of one key are taken to be alike."""
        self.boards()
        return Machine.from_json(self.ask({"do": "machine"}), str(self))

    def require(self, profile: TargetProfile) -> Machine:
        """Return what the board says of itself; raise DeviceError where it cannot run the profile's code."""
        board = self.machine()
        if board.architecture != profile.architecture:
            raise DeviceError(
                f"device: {self} is a machine of {board.architecture}, {profile.name!r} is for "
                f"{profile.architecture}; give the target that fits the board (see `tvmq targets`)"
            )
        if (board.tvm, board.tvm_ffi) != (TVM_VERSION, FFI_VERSION):
            raise DeviceError(
                f"device: {self} has a tvmq {board.tvmq} for apache-tvm {board.tvm} and apache-tvm-ffi "
                f"{board.tvm_ffi}, this one is for {TVM_VERSION} and {FFI_VERSION}; install the same there"
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
        self.boards()
        return self.ask({**request, "artifact": ARTIFACT}, {ARTIFACT: artifact})

    def boards(self) -> tuple[Board, ...]:
        """Return the boards of this key; raise DeviceError without one."""
        if not self.key:
            require_open(self.host, self.port)
            return (Board("", f"{self.host}:{self.port}", None),)
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
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = _within(
                    partial(self._asked, self._lent(), request, files or {}, limit), limit + GRACE
                )
                return answered(json.loads(answer))
            except _LostError as error:
                reason = str(error)
            if not self.key and OTHER_KEY in reason:
                raise DeviceError(
                    f"device: {self} is lent by its tracker alone; name it as tracker:HOST:PORT/KEY"
                )
            if attempt < ATTEMPTS:
                said = f"device: {self} was lost ({reason}); attempt {attempt + 1} of {ATTEMPTS} follows"
                warnings.warn(LostBoardWarning(said), stacklevel=2)
                time.sleep(BACK_OFF * 4 ** (attempt - 1))
        raise DeviceError(
            f"device: {self} was lost {ATTEMPTS} times, the last time: {reason}; "
            f"look at the board and at its `tvmq serve`"
        )

    def _lent(self) -> _Lent:
        """Wait for a free board; what was asked of the tracker is taken back if none is free in time."""
        if not self.key:
            return self.host, self.port, ""
        try:
            with Tracker(self.host, self.port) as tracker:
                tracker.send(REQUEST, self.key, "", 1)
                free, known = time.monotonic() + PATIENCE, time.monotonic() + RETURN
                while not tracker.has_answered(PERIOD):
                    if time.monotonic() > free:
                        raise _LostError(f"no board was free within {PATIENCE:g} s")
                    if any(board.key == self.key for board in boards_of(self.host, self.port)):
                        known = time.monotonic() + RETURN
                    elif time.monotonic() > known:
                        raise _LostError(f"the tracker knew none for {RETURN:g} s")
                _, (host, port, secret) = tracker.answer()
                return str(host), int(port), str(secret)
        except (DeviceError, TypeError, ValueError) as error:
            raise _LostError(str(error)) from error

    def _asked(self, lent: _Lent, request: Mapping[str, Any], files: Files, limit: float) -> str:
        from tvm import rpc

        try:
            session = rpc.connect(*lent, session_timeout=limit + GRACE)
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


def require_open(host: str, port: int) -> None:
    """Raise DeviceError where nothing listens."""
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except (OSError, UnicodeError) as error:
        raise DeviceError(
            f"device: no board answers at {host}:{port} ({error}); start `tvmq serve` there"
        ) from error


def answered(answer: Mapping[str, Any], where: str = "on the board") -> Any:
    """Return the value of an answer; raise ProgramCrashError, or the error that was met there."""
    if "crash" in answer:
        raise ProgramCrashError(f"device: {answer['crash']}")
    if "error" in answer:
        from tvmq import errors

        kind = getattr(errors, str(answer["error"]["kind"]), errors.DeviceError)
        raise kind(f"{where}: {answer['error']['message']}")
    return answer["value"]


class _LostError(Exception):
    """A board, or the way to it, failed."""


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
