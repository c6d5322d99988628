"""Sessions of a board: who may begin one, and that the next one begins however the last one ended.

The protocol is that of TVM's RPC server. TVM's own loop is not used: what is no client of TVM ends it or
holds it for ever, and a session that ends badly leaves it in a folder that is gone.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tvmq.errors import DeviceError
from tvmq.tracker import PENDING_KEYS, PUT, UPDATE_INFO, Tracker, received

MAGIC, MISMATCH = 0xFF271, 0xFF273
LIMIT = "-timeout="  # before the seconds that a session may take
LONGEST_KEY = 1024  # bytes
HANDSHAKE = 5.0  # seconds until a peer has said who it is
PERIOD = 2.0  # seconds between looks at the tracker
UNUSED = 4  # looks until a key that was lent to someone who never came is taken back
PAUSE = 2.0  # seconds before a tracker that was lost is tried again
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

Client = tuple[socket.socket, Any, Mapping[str, float]]  # its connection, address and options
Serve = Callable[..., None]  # tvm.rpc.server._serving


class Lending:
    """This board in a tracker's list, where each client is given another key."""

    def __init__(self, place: tuple[str, int], key: str, port: int) -> None:
        """Raise DeviceError where no tracker answers."""
        self._place, self._key, self._port = place, key, port
        self._enter()

    def offer(self) -> None:
        """Let the tracker lend this board once; raise DeviceError where it does not answer."""
        self.secret, self._unused = f"{self._key}:{random.random()}", 0
        self._tracker.tell(PUT, self._key, (self._port, self.secret), None)

    def look(self) -> None:
        """Offer the board again if it was lent to someone who never came; raise DeviceError as `offer`."""
        lent = self.secret not in self._tracker.ask(PENDING_KEYS)
        self._unused = self._unused + 1 if lent else 0
        if self._unused == UNUSED:
            self.offer()

    def wait(self, why: DeviceError) -> None:
        """Come back into the list once the tracker, which was lost, answers."""
        _say(f"the tracker was lost ({why}); it is tried again every {PAUSE:g} s")
        self._tracker.close()
        while True:
            time.sleep(PAUSE)
            with contextlib.suppress(DeviceError):
                self._enter()
                return _say("the tracker is back")

    def _enter(self) -> None:
        tracker = Tracker(*self._place)
        try:
            tracker.tell(UPDATE_INFO, {"key": f"server:{self._key}", "addr": (None, self._port)})
        except DeviceError:
            tracker.close()
            raise
        self._tracker = tracker


def serve_sessions(listening: socket.socket, lending: Lending | None, key: str, serve: Serve) -> NoReturn:
    """Let serve work for one client after the other: those that the tracker sends, or all."""
    home = os.getcwd()
    while True:
        try:
            client = next_client(listening, lending, key)
        except DeviceError as error:
            assert lending is not None  # nobody else raises it
            lending.wait(error)
            continue
        with client[0]:
            try:
                serve(*client, None)
            except Exception as error:
                _say(f"a session ended badly ({error})")
            finally:
                os.chdir(home)  # a session has a folder of its own, which may be gone now


def next_client(listening: socket.socket, lending: Lending | None, key: str) -> Client:
    """Wait for a client with the right key; raise DeviceError where the tracker is lost meanwhile."""
    if lending:
        lending.offer()
    while True:
        if lending and not select.select([listening], [], [], PERIOD)[0]:
            lending.look()
            continue
        try:
            connection, address = listening.accept()
        except OSError as error:  # a peer that was gone again, or no descriptor was left
            _say(f"a connection could not be had ({error})")
            time.sleep(PAUSE)
            continue
        try:
            return connection, address, _admitted(connection, lending.secret if lending else "", key)
        except ConnectionError:
            connection.close()  # someone looked whether the port is open
        except (OSError, ValueError) as error:
            connection.close()
            _say(f"{address[0]} was sent away ({error})")


def _admitted(connection: socket.socket, secret: str, key: str) -> Mapping[str, float]:
    """Return the options of a client that knows the secret; raise OSError or ValueError for others."""
    ends = time.monotonic() + HANDSHAKE
    magic, length = struct.unpack("<ii", received(connection, 8, ends))
    if magic != MAGIC or not 0 <= length <= LONGEST_KEY:
        raise ValueError("no client of TVM")
    words = received(connection, length, ends).decode().split()
    if words[:1] != [f"client:{secret}"]:
        connection.sendall(struct.pack("<i", MISMATCH))
        raise ValueError("another key")
    limits = [float(word[len(LIMIT) :]) for word in words[1:] if word.startswith(LIMIT)]
    name = f"server:{key}".encode()
    connection.sendall(struct.pack("<ii", MAGIC, len(name)) + name)
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a client whose machine is gone
    for option, value in KEEP_ALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return {"timeout": limits[-1]} if limits else {}


def _say(what: str) -> None:
    print(f"tvmq: {what}; serving on", file=sys.stderr, flush=True)
