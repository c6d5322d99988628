"""The commands of boards: devices, serve, tracker."""

from __future__ import annotations

import sys

from tvmq import report
from tvmq.board import WARNING, is_loopback
from tvmq.cli_output import show
from tvmq.environment import cpu_name, default_threads
from tvmq.errors import EnvironmentMismatchError
from tvmq.machine import this_machine
from tvmq.target import native_profile
from tvmq.tracker import Board, address_of, boards_of

STATES = {True: "free", False: "busy", None: "some are busy"}


def devices(tracker: str, *, as_json: bool) -> int:
    """List this machine and the tracker's boards."""
    try:
        native = native_profile().name
    except EnvironmentMismatchError:
        native = "none fits"
    boards: tuple[Board, ...] = ()
    if tracker:
        host, port = address_of(tracker)
        boards = boards_of(host, port)
    here = {"cpu": cpu_name(), "architecture": this_machine(), "threads": default_threads(), "target": native}
    rows = [["this machine", f"{cpu_name()} ({this_machine()})", f"target {native}"]]
    rows += [[f"tracker:{tracker}/{b.key}", b.address, STATES[b.free]] for b in boards]
    data = {"here": here, "boards": [board.to_json() for board in boards]}
    show(data, report.comparison("Devices", ["device", "where", ""], rows), as_json=as_json)
    return 0


def serve(host: str, port: int, tracker: str, key: str) -> int:
    """Serve until interrupted."""
    from tvmq import board

    _warn("serve", host, port)
    board.serve(host, port, tracker, key)
    return 0


def tracker(host: str, port: int) -> int:
    """Track until interrupted."""
    from tvmq import board

    _warn("tracker", host, port)
    board.track(host, port)
    return 0


def _warn(who: str, host: str, port: int) -> None:
    near = "only this machine reaches it" if is_loopback(host) else "THE NETWORK REACHES IT"
    print(f"tvmq: {who} on {host}:{port}, {near}; {WARNING}", file=sys.stderr, flush=True)
