"""Kernels that are only a cost function, so that a tuning can be run through in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmq.neighbours import Neighbours
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Decisions, Space
from tvmq.tune.database import Database, Setting
from tvmq.tune.measure import BrokenCandidateError
from tvmq.tune.options import Tune
from tvmq.tune.results import TunedKernel
from tvmq.tune.session import Session

HERE = Setting("x86_avx2", "a CPU", 2, "today's")
SPACE = Space(
    {"rows": tuple(range(1, 17)), "columns": tuple(range(1, 17)), "outer": ("rows", "columns")},
    {"rows": 1, "columns": 1, "outer": "rows"},
    valid=lambda d: int(d["rows"]) * int(d["columns"]) <= 64,
)


def kernel(best_row: int = 11) -> Kernel:
    """Return a kernel that is fastest with so many rows, 5 columns, columns outside."""
    return Kernel(("synthetic", best_row), f"synthetic_{best_row}", (), lambda **_: None, SPACE)


def cost(made: Kernel, decisions: Decisions) -> float:
    """Return seconds."""
    rows, columns = int(decisions["rows"]), int(decisions["columns"])
    off = (rows - made.key[1]) ** 2 + 3 * (columns - 5) ** 2
    return 1e-6 * (100 + off + (20 if decisions["outer"] == "rows" else 0))


class CostBench:
    """A Bench that looks its times up; rows 7 are broken, and every call is counted."""

    def __init__(self, use: Use) -> None:
        self.kernel = use.kernel
        self.calls = 0

    def trial(self, decisions: Decisions) -> tuple[float, float]:
        self.calls += 1
        if decisions["rows"] == 7:
            raise BrokenCandidateError(decisions, "rows 7")
        return cost(self.kernel, decisions), cost(self.kernel, SPACE.default)

    def expect(self, several: Sequence[Decisions]) -> None:
        pass

    def final(self, finalists: Sequence[Decisions]) -> list[float]:
        return [cost(self.kernel, d) for d in (SPACE.default, *finalists)]

    def close(self) -> None:
        pass


def idle() -> Neighbours:
    """Return a watch that sees nobody."""
    return Quiet()


class Quiet(Neighbours):
    """Nobody else is there, however busy the tests' machine is."""

    def crowd(self, threads: int) -> bool:
        return False


def session(
    path: Path, *kernels: Kernel, setting: Setting = HERE, benches: Any = CostBench, **options: Any
) -> Session:
    """Return a session over kernels that are called once each."""
    uses = {made.semantics: Use(made, 1, ()) for made in kernels or (kernel(),)}
    rest = {name: options.pop(name) for name in ("progress", "now", "neighbours") if name in options}
    rest = {"neighbours": idle, **rest}
    return Session(uses, Tune(database=path, **options), Database(path, setting), benches, **rest)


def tuned(path: Path, **options: Any) -> tuple[TunedKernel, ...]:
    """Tune the one synthetic kernel."""
    return session(path, **options).run()
