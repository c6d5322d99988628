"""The command as a process: its Ctrl-C, and its end."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tvmq.errors import TvmqWarning


@contextmanager
def noted(interrupts: list[int]) -> Iterator[None]:
    """Append to interrupts at Ctrl-C, which a pass of TVM turns into a RuntimeError that says nothing."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _to_stderr(message: str) -> None:
    print(f"tvmq: warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def told_warnings(say: Callable[[str], None] = _to_stderr) -> Iterator[None]:
    """Say our warnings as sentences, without the line of code that gave them; others pass as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def told(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, TvmqWarning):
                say(str(message))
            else:
                usual(message, category, *rest, **more)

        warnings.showwarning = told
        yield


def keep_stdout() -> None:
    """Leave standard output to Python: what a native library prints (HiGHS does) goes to standard error.

    A line of its between ours would break the one JSON object that a program reads.
    """
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115


def leave(code: int) -> NoReturn:
    """End this process at once, its output written and its exit functions run.

    Taking apart what TVM and torch hold takes seconds, on a busy machine half a minute, after all was said.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # whoever read it is gone
            code = code or 1
    os._exit(code)


def refuse(given: Sequence[str], kind: str, message: str, code: int) -> int:
    """Say why a command does not do what is asked, as JSON too where that is asked for; return the code."""
    if "--json" in given:
        print(json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}}))
    print(f"tvmq: {message}", file=sys.stderr)
    return code
