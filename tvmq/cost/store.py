"""What was measured of kernels, one JSON line each, shared by all models and by tuning's rules.

A line holds all that its number depends on: the kernel, the machine's fingerprint, the versions and kernel
sources (tune.database.Setting), and how far away its constants were. Lines of anything else are never used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvmq.errors import UsageError
from tvmq.line_file import LineFile
from tvmq.record import Record
from tvmq.tune.database import Setting
from tvmq.tune.options import default_database

START = b'{"cost": "'  # of every line
FILE_NAME = "costs.jsonl"


@dataclass(frozen=True, slots=True)
class Measured(Record):
    """One kernel's time on one machine; us is over 0."""

    cost: str  # Work.key, and which cache its constants came from
    setting: Setting
    family: str
    us: float  # the middle one of the least times of several parts of the measurement
    spread: float  # (p90 - p10) / median of all runs
    runs: int
    features: Mapping[str, float]  # what a model learns from
    crowded: bool  # other programs had the cores meanwhile: to be measured again when they do not

    def __post_init__(self) -> None:
        if not 0 < self.us < math.inf:
            raise ValueError(f"Measured: us is {self.us!r}, a finite time over 0 is wanted")


class Store:
    """The lines of one setting in a file.

    Of several of one kernel the least counts, since noise only adds; first of those that no one disturbed.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        self._file = LineFile(path, START, "cost")
        self._known: dict[str, Measured] = {}
        for line in self._file.read(Measured.from_json):
            if line.setting == setting:
                self._add(line)

    def __contains__(self, cost: str) -> bool:
        return cost in self._known

    def __getitem__(self, cost: str) -> Measured:
        return self._known[cost]

    @property
    def lines(self) -> tuple[Measured, ...]:
        """Return what is known of this setting, one line for each kernel."""
        return tuple(self._known.values())

    def append(self, line: Measured) -> None:
        """Write one line and wait until it is on the disk."""
        if line.setting != self.setting:
            raise UsageError(f"{self.path}: a line of another machine or version; open the file for that one")
        self._file.append(line)
        self._add(line)

    def require_writable(self) -> None:
        """Make the file, empty if there is none; raise UsageError where it cannot be written."""
        self._file.require_writable()

    def _add(self, line: Measured) -> None:
        self._known[line.cost] = min(self._known.get(line.cost, line), line, key=_order)


def _order(line: Measured) -> tuple[bool, float]:
    return line.crowded, line.us


def default_store() -> Path:
    """Return the file beside the tuning database."""
    return default_database().with_name(FILE_NAME)
