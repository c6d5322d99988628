"""Engines in processes of their own that take turns, so that only one computes at a time.

A process whose turn it is not is stopped (SIGSTOP): threads that go on spinning after their answer cost the
next engine nothing, and no library's settings of threads or cores reach another. A turn is runs that are not
timed, which bring the engine's weights back into the caches and the core up to its clock, then timed ones,
back to back. The order of a round begins one engine further each time.
"""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from parts import NotMeasuredError, environment, reason_in
from prepare import HERE

from tvmq.bench import rotated

TURN_S = 0.1  # of timed runs, at least; two runs of a slow model take longer. As long before without timing
ANSWER_S = 300.0  # an engine that is silent for so long has failed
END_S = 10.0  # what a process that closed its output gets to end by itself
STARTS = 5  # new processes whose time to the first answer is measured, after one that warms the file cache


@dataclass(frozen=True)
class Job:
    """What one process runs."""

    python: Path
    runtime: str
    model: Path
    inputs: Path
    threads: int
    variables: Mapping[str, str] = field(default_factory=dict)  # of its environment, besides this process's


@dataclass(frozen=True)
class Measured:
    """What was seen of one engine."""

    cold_start_ms: float
    seconds: list[float]  # of every timed run
    peak_mb: float
    answer: np.ndarray[Any, Any]
    versions: dict[str, str]
    settings: dict[str, str]


class Worker:
    """A process that runs one engine; stopped except between a question and its answer."""

    def __init__(self, job: Job) -> None:
        """Return once the first answer is there; cold_start_s is how long that took."""
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors"
        self.answer = Path(self._folder.name) / "answer.npy"
        arguments = (job.runtime, job.model, job.inputs, job.threads, self.answer)
        command = [job.python, HERE / "worker.py", *arguments]
        began = time.perf_counter()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment() | job.variables,
                cwd=self._folder.name,
            )
        try:
            self._reply()
        except BaseException:
            self.close()
            raise
        self.cold_start_s = time.perf_counter() - began
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Let the process run until it answers."""
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return self._reply()
        except BrokenPipeError:
            raise NotMeasuredError(self._reason()) from None
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(ANSWER_S):
                raise NotMeasuredError(f"no answer within {ANSWER_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise NotMeasuredError(self._reason())
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _reason(self) -> str:
        try:
            ended = f"exit code {self._process.wait(END_S)}"
        except subprocess.TimeoutExpired:
            ended = f"its output is closed, and it did not end within {END_S:.0f} s"
        return reason_in(self._errors.read_text(errors="replace")) or ended


def measure(
    jobs: Mapping[str, Job], rounds: int, starts: int, done: Callable[[], None]
) -> dict[str, Measured | NotMeasuredError]:
    """Start every job, then let them take turns; done is called after every start and every turn."""
    found: dict[str, Measured | NotMeasuredError] = {}
    cold_ms: dict[str, float] = {}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, job in jobs.items():
            try:
                cold_ms[name], worker = started(job, starts, done)
            except NotMeasuredError as failed:
                found[name] = failed
            else:
                workers[name] = stack.enter_context(worker)
        seconds = take_turns(workers, rounds, found, done)
        for name in workers.keys() - found.keys():
            answer = np.load(workers[name].answer)
            found[name] = Measured(
                cold_ms[name], seconds[name], answer=answer, **workers[name].ask({"about": True})
            )
    return found


def started(job: Job, starts: int, done: Callable[[], None]) -> tuple[float, Worker]:
    """Start a job `starts` times and once before; return the median time in ms, and the last process."""
    with Worker(job):  # brings the files into memory
        done()
    spent = []
    for left in reversed(range(starts)):
        worker = Worker(job)
        spent.append(1e3 * worker.cold_start_s)
        if left:
            worker.close()
        done()
    return float(np.median(spent)), worker


def take_turns(
    workers: Mapping[str, Worker], rounds: int, failed: dict[str, Any], done: Callable[[], None]
) -> dict[str, list[float]]:
    """Return the seconds of every run of every worker; one that fails gets its reason in `failed`."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in rotated(list(workers), number):
            if name not in failed:
                try:
                    seconds[name] += [ms / 1e3 for ms in workers[name].ask({"seconds": TURN_S})["ms"]]
                except NotMeasuredError as reason:
                    failed[name] = reason
            done()
    return seconds
