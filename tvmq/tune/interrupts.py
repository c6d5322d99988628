"""Ctrl-C while tuning: the first lets the trial that runs come to its end, a second one cuts it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    """Which Ctrl-C there were since `caught` was entered."""

    def __init__(self) -> None:
        self.asked = False  # to end after the trial that runs
        self.cut = False  # to end at once

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take Ctrl-C; but not in another thread than the main one, nor where it is ignored."""
        before = signal.getsignal(signal.SIGINT)
        ignored = before in (signal.SIG_IGN, None)
        if ignored or threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGINT, self._take)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for a cut that TVM made an error of its own, which says nothing."""
        try:
            yield
        except Exception as error:
            if self.cut:
                raise KeyboardInterrupt from error
            raise

    def _take(self, number: int, frame: object) -> None:
        if self.asked:
            self.cut = True
            raise KeyboardInterrupt
        self.asked = True
