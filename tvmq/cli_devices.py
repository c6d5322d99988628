"""The commands of boards: devices, serve, tracker."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tvmq import report
from tvmq.board import WARNING, is_loopback
from tvmq.cli_output import show
from tvmq.device import Device, Machine
from tvmq.environment import cpu_name, default_threads
from tvmq.errors import DeviceError, EnvironmentMismatchError, UsageError
from tvmq.gpu import Gpu, these_gpus
from tvmq.machine import machine_features, this_machine
from tvmq.target import builtin_profiles, native_profile
from tvmq.tracker import Board, address_of, boards_of

ANSWER = 20.0  # seconds for a free board to tell what it is
STATES = {True: "free", False: "busy", None: "some are busy"}


def devices(tracker: str, *, as_json: bool) -> int:
    """List this machine and the tracker's boards; a free one is asked what it is."""
    try:
        native = native_profile().name
    except EnvironmentMismatchError:
        native = "none fits"
    boards: tuple[Board, ...] = ()
    place = address_of(tracker) if tracker else ("", 0)
    if tracker:
        boards = boards_of(*place)
    gpus, fitting = these_gpus().found, gpu_targets(this_machine(), machine_features())
    here = {
        "cpu": cpu_name(), "architecture": this_machine(), "threads": default_threads(), "target": native,
        "gpus": [gpu.to_json() for gpu in gpus], "gpu_targets": fitting,
    }  # fmt: skip
    rows = [["this machine", f"{cpu_name()} ({this_machine()})", f"target {native}"]]
    rows += _gpu_rows(gpus, fitting)
    data: dict[str, Any] = {"here": here, "boards": []}
    for board, found in zip(boards, _machines(boards, place), strict=True):
        targets = gpu_targets(found.architecture, found.features) if found else []
        told = {"machine": found and found.to_json(), "gpu_targets": targets}
        data["boards"].append(board.to_json() | told)
        rows.append([f"tracker:{tracker}/{board.key}", board.address, STATES[board.free]])
        rows += _gpu_rows(found.gpus if found else (), targets)
    show(data, report.comparison("Devices", ["device", "where", ""], rows), as_json=as_json)
    return 0


def gpu_targets(architecture: str, features: Iterable[str]) -> list[str]:
    """Return the GPU targets that a machine can verify, measure and tune for."""
    known = frozenset(features)
    gpus = (p for p in builtin_profiles() if p.capability is not None and p.architecture == architecture)
    return sorted(profile.name for profile in gpus if not profile.missing(known))


def _gpu_rows(gpus: Iterable[Gpu], targets: Sequence[str]) -> list[list[str]]:
    wanted = f"tunes for {', '.join(targets)}" if targets else "no target fits"
    return [["", gpu.name, wanted] for gpu in gpus]


def _machines(boards: Sequence[Board], place: tuple[str, int]) -> list[Machine | None]:
    """Return what boards are, alike if of one key; None where all are busy, or none answers."""
    known: dict[str, Machine | None] = {}
    for board in sorted(boards, key=lambda board: board.free is not True):
        if board.key not in known:
            known[board.key] = _machine(Device(*place, board.key)) if board.free else None
    return [known[board.key] for board in boards]


def _machine(device: Device) -> Machine | None:
    with contextlib.suppress(DeviceError, UsageError):
        return Machine.from_json(device.ask({"do": "machine"}, limit=ANSWER), str(device))
    return None


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
