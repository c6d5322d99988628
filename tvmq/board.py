"""What runs on a board: TVM's RPC server with one function of tvmq's, which works in a process of its own.

A crash there, or a program that does not end, is thus an answer like any other; the server stays.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import socket

from tvmq.board_sessions import Lending, serve_sessions
from tvmq.device import FUNCTION
from tvmq.errors import DeviceError, EnvironmentMismatchError, UsageError
from tvmq.own_process import answer
from tvmq.tracker import address_of

WARNING = (
    "whoever reaches this port can run any code here, unencrypted and without a password: "
    "keep it on the loopback interface, in a network of your own, or behind ssh -L"
)


def serve(host: str, port: int, tracker: str, key: str) -> None:
    """Serve until interrupted: the clients that a tracker sends, or, without one, any.

    Raises UsageError for arguments that do not go together, DeviceError where the port or the tracker is not
    to be had.
    """
    place = address_of(tracker) if tracker else None
    if bool(tracker) != bool(key):
        raise UsageError(
            "serve: --tracker and --key go together: the list, and the kind of this board there, as rpi4"
        )
    if place is not None and is_loopback(host) and not is_loopback(place[0]):
        raise UsageError(
            f"serve: the tracker on {place[0]} sends clients that cannot reach {host}; give --host 0.0.0.0, "
            f"or tunnels of ssh and --tracker 127.0.0.1:{place[1]} (see README)"
        )
    with _listening(host, port, "serve") as listening:
        lending = Lending(place, key, port) if place else None
        import tvm_ffi  # seconds that a wrong address need not wait for
        from tvm.rpc import server

        tvm_ffi.register_global_func(FUNCTION, answer, override=True)
        serve_sessions(listening, lending, key, server._serving)


def track(host: str, port: int) -> None:
    """Be the tracker until interrupted: the list of boards, and who has which; needs the package tornado."""
    if importlib.util.find_spec("tornado") is None:
        raise EnvironmentMismatchError(
            "tracker: tornado is not installed; run `pip install tornado` (the extra `devices`)"
        )
    with _listening(host, port, "tracker") as listening:
        from tvm.rpc import base, tracker

        tracker._tracker_server(listening, base.random_key("tracker"))


def _listening(host: str, port: int, who: str) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is found before TVM is imported."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=8)
    except (OSError, UnicodeError, OverflowError) as error:  # a host may be no name, a port no number of one
        elsewhere = getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        wrong = "--host" if elsewhere or isinstance(error, socket.gaierror | UnicodeError) else "--port"
        raise DeviceError(f"{who}: {host}:{port} cannot be had ({error}); give another {wrong}") from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
