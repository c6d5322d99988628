"""What was measured, one JSON line each, in a file that is only ever appended to.

Every line holds all that its number depends on, so files of several machines may be joined by `cat`, and
lines of another kernel, target, CPU, thread count or version are never used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from tvmq.environment import cpu_identity, versions
from tvmq.gpu import fitting, these_gpus
from tvmq.line_file import LineFile
from tvmq.record import Record
from tvmq.schedule.cuda.toolkit import compiler_version
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile

START = b'{"event": "'  # of every line
CRASHES = 2  # a trial that was begun so often and never ended took its process with it
PACKAGE = Path(__file__).parents[1]
# What says how a kernel computes and is tiled; the rest of the package only decides which kernels there are.
KERNEL_SOURCES = (
    "bit_planes.py", "numerics.py", "passes/conv_geometry.py", "passes/pool_composite.py", "schedule/*.py",
)  # fmt: skip
GPU_SOURCES = ("schedule/cuda/*.py", "schedule/cuda/device/*.cuh")


class Event(StrEnum):
    """What a line tells."""

    BEGAN = "began"  # a trial that may crash the process
    MEASURED = "measured"
    FAILED = "failed"  # it cannot be built, or computes other bits
    INTERRUPTED = "interrupted"  # a trial that the user cut short, which says nothing of it
    CHOSEN = "chosen"  # the best of `trials` decisions, after a last comparison with the default


@dataclass(frozen=True, slots=True)
class Setting(Record):
    """What all lines of one tuning have in common."""

    target: str
    cpu: str  # or the GPU that computes
    threads: int
    versions: str


@dataclass(frozen=True, slots=True)
class Line(Record):
    """One line of the file; times are in microseconds, finite and over 0."""

    event: Event
    kernel: str  # Kernel.semantics
    setting: Setting
    decisions: Mapping[str, Any]  # of Choice
    us: float | None = None
    default_us: float | None = None  # of the default decisions, measured in turns with these
    trials: int | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.decisions.items():
            if not isinstance(value, int | str):
                raise ValueError(f"Line: {name} is {value!r}, a whole number or text is wanted")
        for time in (self.us, self.default_us):
            if time is not None and not 0 < time < math.inf:
                raise ValueError(f"Line: a time is {time!r}, a finite one over 0 is wanted")


Point = tuple[tuple[str, Any], ...]


def point(decisions: Decisions) -> Point:
    """Return decisions as a key."""
    return tuple(sorted(decisions.items()))


@dataclass(slots=True)
class History:
    """What is known of one kernel."""

    measured: dict[Point, Line] = field(default_factory=dict)
    failed: set[Point] = field(default_factory=set)
    begun: dict[Point, int] = field(default_factory=dict)
    choices: dict[Point, Line] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Take in a line. The order of lines does not matter: the least time stays, and a failure does."""
        at = point(line.decisions)
        if line.event is Event.BEGAN:
            self.begun[at] = self.begun.get(at, 0) + 1
        elif line.event is Event.INTERRUPTED:
            self.begun[at] = self.begun.get(at, 0) - 1
        elif line.event is Event.FAILED:
            self.failed.add(at)
            self.measured.pop(at, None)
            self.choices.pop(at, None)
        elif at in self.failed:
            return
        elif line.event is Event.MEASURED:
            self.measured[at] = min(self.measured.get(at, line), line, key=ratio)
        else:
            self.choices[at] = max(self.choices.get(at, line), line, key=_rank)

    @property
    def chosen(self) -> Line | None:
        """Return the choice that rests on most trials; none that failed since."""
        return max(self.choices.values(), key=_rank, default=None)

    @property
    def tried(self) -> set[Point]:
        """Return the decisions that need no other trial: measured, failed, or ends of their process."""
        crashed = {at for at, times in self.begun.items() if times >= CRASHES}
        return self.failed | self.measured.keys() | crashed

    def best(self, count: int) -> list[Decisions]:
        """Return the decisions that were measured to be fastest against the default."""
        ordered = sorted(self.measured.values(), key=lambda line: (ratio(line), repr(point(line.decisions))))
        return [line.decisions for line in ordered[:count]]


def ratio(line: Line) -> float:
    """Return the time relative to the default's."""
    return line.us / line.default_us if line.us and line.default_us else math.inf


def _rank(line: Line) -> tuple[int, float]:
    return line.trials or 0, -ratio(line)


class Database:
    """The lines of one setting in a file; reading skips what it cannot use."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path = path
        self.setting = setting
        self._file = LineFile(path, START, "tuning")
        self._histories: dict[str, History] = {}
        for line in self._file.read(Line.from_json):
            if line.setting == setting:
                self.history(line.kernel).add(line)

    def history(self, kernel: str) -> History:
        """Return what is known of a kernel; it grows with append."""
        return self._histories.setdefault(kernel, History())

    @property
    def decisions(self) -> Mapping[str, Decisions]:
        """Return what was chosen, by kernel."""
        chosen = {kernel: history.chosen for kernel, history in self._histories.items()}
        return {kernel: line.decisions for kernel, line in chosen.items() if line is not None}

    def append(self, event: Event, kernel: str, decisions: Decisions, **facts: Any) -> None:
        """Write one line and wait until it is on the disk."""
        line = Line(event, kernel, self.setting, dict(decisions), **facts)
        self._file.append(line)
        self.history(kernel).add(line)

    def require_writable(self) -> None:
        """Make the file, empty if there is none; raise UsageError where it cannot be written."""
        self._file.require_writable()


def setting_of(profile: TargetProfile, threads: int, cpu: str | None = None) -> Setting:
    """Return the setting of a CPU or a GPU, this machine's by default, and these versions.

    Threads make no difference to kernels of a GPU: the setting then has 1.
    """
    code = {
        "requires": sorted(profile.features),  # these choose the instruction set, not tvm_target
        "intrinsics": list(dict.fromkeys(k.intrinsic for k in profile.kernels if k.intrinsic)),
        "l2_bytes": profile.machine.l2_bytes,  # how far apart the copies of constants are used
        **profile.to_dict()["tvm_target"],
    }
    sources, compiler = _sources(), ""
    if profile.capability is not None:
        # The default tile hangs on these.
        code["processors"] = profile.machine.processors
        code["macs_per_cycle"] = [kernel.macs_per_cycle for kernel in profile.kernels]
        sources += _gpu_sources()
        compiler = f"nvrtc {compiler_version(str(profile.tvm_target['arch']))}, "
        threads, cpu = 1, cpu or _gpu_name(profile)
    target = json.dumps(code, sort_keys=True)
    found = "".join(f"{name} {version}, " for name, version in versions().items())
    return Setting(
        f"{profile.name} {target}",
        cpu or cpu_identity(),
        threads,
        f"{found}{compiler}kernels {digest_of(sources)}",
    )


def _gpu_name(profile: TargetProfile) -> str:
    gpus = these_gpus().found
    number = fitting(profile.features, gpus)
    return "no GPU" if number is None else gpus[number].name


@cache
def _sources() -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in KERNEL_SOURCES for path in PACKAGE.glob(pattern)))


@cache
def _gpu_sources() -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in GPU_SOURCES for path in PACKAGE.glob(pattern)))


@cache
def digest_of(paths: Iterable[Path]) -> str:
    """Return a digest of source files: a number of older code says nothing of today's."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
