"""What runs on a board: TVM's RPC server with one function of tvmq's, which works in a process of its own.

A crash there, or a program that does not end, is thus an answer like any other; the server stays.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tvmq.device import FUNCTION, tracker_address
from tvmq.errors import DeviceError, EnvironmentMismatchError, UsageError

DEFAULT_PORT = 9090
LIMIT = 600.0  # seconds, where a request says nothing
# A session works in a folder of its own: paths from here would lead nowhere.
PATHS = [str(Path(__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
PAUSE = 1.0  # seconds before a server that ended is started again
WARNING = (
    "whoever reaches this port can run any code here, unencrypted and without a password: "
    "keep it on the loopback interface, in a network of your own, or behind ssh -L"
)


def answer(request: str) -> str:
    """Do what a request in JSON asks, in a process of its own; return the answer in JSON."""
    limit = float(json.loads(request).get("limit", LIMIT))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tvmq.board_worker"],
            input=request, capture_output=True, text=True, errors="replace", timeout=limit, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return json.dumps({"crash": f"no end within {limit:g} s"})
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    words = done.stderr.strip()[-500:]
    if done.returncode < 0:
        return json.dumps({"crash": f"ended by {signal.Signals(-done.returncode).name} {words}".strip()})
    return json.dumps({"crash": f"exit code {done.returncode}: {words}"})


def serve(host: str, port: int, tracker: str, key: str) -> None:
    """Serve until interrupted; raise UsageError for a tracker without key, DeviceError without a port."""
    place = tracker_address(tracker) if tracker else None
    if place is not None and not key:
        raise UsageError("serve: --tracker is given without --key; name the kind of this board, as rpi4")
    listening = _listening(host, port, "serve")
    import tvm_ffi
    from tvm.rpc import server

    tvm_ffi.register_global_func(FUNCTION, answer, override=True)
    while True:
        try:  # it ends with the first session that ends badly
            server._listen_loop(listening, port, key, place, None, None)
        except (RuntimeError, OSError, AssertionError) as error:
            print(f"tvmq: a session ended badly ({error}); serving on", file=sys.stderr)
            time.sleep(PAUSE)


def track(host: str, port: int) -> None:
    """Be the tracker until interrupted: the list of boards, and who has which; needs the package tornado."""
    listening = _listening(host, port, "tracker")
    if importlib.util.find_spec("tornado") is None:
        raise EnvironmentMismatchError(
            "tracker: tornado is not installed; run `pip install tornado` (the extra `devices`)"
        )
    from tvm.rpc import base, tracker

    tracker._tracker_server(listening, base.random_key("tracker"))


def _listening(host: str, port: int, who: str) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is found before TVM is imported."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=8)
    except OSError as error:
        raise DeviceError(f"{who}: {host}:{port} cannot be had ({error}); give another --port") from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
