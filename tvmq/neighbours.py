"""How busy other programs keep the cores while something is measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

STAT = Path("/proc/stat")
SLACK = 0.2  # cores: what a quiet system does beside


@dataclass
class Neighbours:
    """A context manager; `cores` afterwards is how many others used on average, 0 where that is unknown.

    Of the cores that this process may use; a share of cores that a container is limited to is not known.

    Linux counts in hundredths of a second: of less than a fifth of a second little can be said.
    """

    cores: float = field(default=0.0, init=False)

    def __enter__(self) -> Neighbours:
        self._began = time.perf_counter(), _all_seconds(), _own_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, everyone, own = self._began
        wall = time.perf_counter() - wall
        if wall > 0:
            others = _all_seconds() - everyone - (_own_seconds() - own)
            self.cores = min(max(others / wall, 0.0), float(len(os.sched_getaffinity(0))))

    def crowd(self, threads: int) -> bool:
        """Whether so many threads had to wait for a core."""
        return self.cores > len(os.sched_getaffinity(0)) - threads + SLACK


def _all_seconds() -> float:
    """Return the time that the cores which this process may use have worked since the machine began."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    try:
        for line in STAT.read_text("ascii").splitlines():
            name, *numbers = line.split()
            if name in ours:
                user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, numbers[:8])
                ticks += user + nice + system + interrupts + soft + stolen
    except (OSError, ValueError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
