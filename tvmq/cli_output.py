"""How commands speak: results on stdout as tables or as one JSON object, progress and refusals on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
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
from rich.text import Text

PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe


def show(data: Mapping[str, Any], *renderables: RenderableType, as_json: bool) -> None:
    """Print data as JSON, or else the renderables."""
    if as_json:
        print(json.dumps(data, indent=2))
        return
    console = Console(markup=False)  # names come from files: "[/blue]" is one, not a style
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, markup=False)
    for renderable in renderables:
        console.print(renderable)


class StageDisplay:
    """A Progress on stderr: bars with the time left on a terminal, else one line for each stage.

    The line begins with the stage's name and gets its seconds when the next stage reports, whatever this one
    counted to.
    """

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._console = console or Console(file=sys.stderr)
        self._now = now
        self._stage = ""
        self._total = 1
        self._since = 0.0
        self._task = TaskID(0)
        self._bars: Bars | None = None
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
        if error is None:
            self._finish()
        elif self._stage and not self._bars:
            self._console.print()
        if self._bars:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._finish()
            self._since = self._now()
            if self._bars:
                self._task = self._bars.add_task(stage, total=total)
            else:
                self._console.print(stage, end="", highlight=False)
                self._console.file.flush()
        self._stage, self._total = stage, total
        if self._bars:
            self._bars.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Print a line between the stages."""
        if not self._bars:
            self._finish()
            self._stage = ""
        self._console.print(Text(f"tvmq: {text}"), soft_wrap=True)

    def _finish(self) -> None:
        if not self._stage:
            return
        if self._bars:
            self._bars.update(self._task, completed=self._total)
        else:
            self._console.print(f" {self._now() - self._since:.1f} s", highlight=False)
