"""How commands speak: results on stdout as tables or as one JSON object, progress and refusals on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe


def show(data: Mapping[str, Any], *renderables: RenderableType, as_json: bool) -> None:
    """Print data as JSON, or else the renderables."""
    if as_json:
        print(json.dumps(data, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    for renderable in renderables:
        console.print(renderable)


class StageDisplay:
    """A Progress on stderr: bars with the time left on a terminal, else one line for each finished stage."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: tuple[str, int, int] | None = None
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), console=self._console,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
        elif self._last and error is None:
            self._print_last()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            if self._last and self._last[0] != stage:
                self._tasks.pop(self._last[0], None)  # a stage that comes again gets a bar of its own
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif self._last and self._last[0] != stage:
            self._print_last()
        self._last = (stage, done, total)

    def _print_last(self) -> None:
        assert self._last
        stage, done, total = self._last
        self._console.print(f"{stage} {done}/{total}", highlight=False)
