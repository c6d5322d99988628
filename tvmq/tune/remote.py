"""Measure kernels on boards: built and linked here, timed there in turns with the default.

Those of GPUs are measured on this machine the same way, see tvmq.tune.here.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tvm

from tvmq.device import Device, Files
from tvmq.errors import EnvironmentMismatchError, GpuError, ProgramCrashError
from tvmq.gpu import CUDA, is_gpu_feature
from tvmq.linker import require_linker
from tvmq.schedule.cuda.toolkit import compiling
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile
from tvmq.tune.here import ThisMachine
from tvmq.tune.measure import EVICTING_CACHES, BrokenCandidateError, arguments_of
from tvmq.tune.turns import BLOCKS, SECONDS

OPERANDS = "operands.npz"
TRIAL_LIMIT = 120.0  # seconds that a board may take for one comparison


class BoardBench:
    """The Bench of a kernel on the boards of one key, or on this machine's GPU."""

    def __init__(
        self, use: Use, profile: TargetProfile, device: Device | ThisMachine, threads: int, *, seed: int = 0
    ) -> None:
        """Raise DeviceError where no board runs the default kernel."""
        self._kernel, self._device = use.kernel, device
        self._target = profile.tvm()
        self._linker = require_linker(str(profile.tvm_target["mtriple"]))
        default = use.kernel.function()
        arguments, outputs = arguments_of(use, default, seed)
        file = io.BytesIO()
        np.savez(file, *arguments)
        self._operands = file.getvalue()
        self._request = {
            "do": "time",
            "operands": OPERANDS,
            "constant": [argument is not None for argument in use.arguments],
            "outputs": [[list(shape), dtype] for shape, dtype in outputs],
            "evicting": EVICTING_CACHES * profile.machine.l2_bytes,
            "threads": threads,
            "gpu": sorted(filter(is_gpu_feature, profile.features)),
        }
        self._default = self._library(default)
        self._begun: dict[str, Future[Any]] = {}
        self._expected = self._ask([self._default], SECONDS)["digests"][0]
        self._pool = ThreadPoolExecutor(max(len(device.boards()), 1), thread_name_prefix="tvmq.board")

    def expect(self, several: Sequence[Decisions]) -> None:
        """Let every board begin with one of these trials; they are built here, one after the other."""
        for decisions in several:
            try:
                libraries = [self._default, self._built(decisions)]
            except BrokenCandidateError:
                continue  # told when its turn comes
            self._begun[repr(decisions)] = self._pool.submit(self._ask, libraries, SECONDS)

    def trial(self, decisions: Decisions) -> tuple[float, float]:
        """Return the seconds of these decisions and of the default; raise BrokenCandidateError."""
        begun = self._begun.pop(repr(decisions), None)
        try:
            if begun is None:
                answer = self._ask([self._default, self._built(decisions)], SECONDS)
            else:
                answer = begun.result()
        except (ProgramCrashError, GpuError) as error:
            raise BrokenCandidateError(decisions, str(error)) from error
        self._check(answer, [decisions])
        default, candidate = answer["least"]
        return candidate, default

    def final(self, finalists: Sequence[Decisions]) -> list[float]:
        """Return the seconds of the default, then of the finalists, from a longer comparison on one board."""
        self._forget()
        libraries = [self._default, *(self._built(decisions) for decisions in finalists)]
        try:
            answer = self._ask(libraries, BLOCKS * SECONDS)
        except (ProgramCrashError, GpuError) as error:
            # Any of them; the last may be tried again without the others.
            raise BrokenCandidateError(finalists[-1], str(error)) from error
        self._check(answer, finalists)
        return list(answer["settled"])

    def close(self) -> None:
        """Begin none of the trials that wait for a board; those under way end unheard."""
        self._forget()
        self._pool.shutdown(wait=False)

    def _forget(self) -> None:
        for begun in self._begun.values():
            begun.cancel()
        self._begun.clear()

    def _ask(self, libraries: Sequence[bytes], seconds: float) -> Any:
        names = [f"{number}.so" for number in range(len(libraries))]
        files: Files = {OPERANDS: self._operands, **dict(zip(names, libraries, strict=True))}
        return self._device.ask({**self._request, "libraries": names, "seconds": seconds}, files, TRIAL_LIMIT)

    def _check(self, answer: Any, decided: Sequence[Decisions]) -> None:
        for digest, decisions in zip(answer["digests"][1:], decided, strict=True):
            if digest != self._expected:
                raise BrokenCandidateError(decisions, "other bits than the default kernel's")

    def _built(self, decisions: Decisions) -> bytes:
        try:
            return self._library(self._kernel.function(decisions))
        except (OSError, EnvironmentMismatchError):  # no room for files, no linker: no fault of the kernel
            raise
        except Exception as error:  # TVM and LLVM have no common class for what they refuse
            said = " ".join(str(error).split())
            raise BrokenCandidateError(decisions, f"{type(error).__name__}: {said[-200:]}") from error

    def _library(self, func: Any) -> bytes:
        module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        arch = self._target.attrs.get("arch") if self._target.kind.name == CUDA else None
        device = compiling(str(arch)) if arch else contextlib.nullcontext()
        with tempfile.TemporaryDirectory() as folder, device:
            path = Path(folder) / "kernel.so"
            tvm.compile(module, self._target).export_library(str(path), fcompile=self._linker)
            return path.read_bytes()


class Elsewhere:
    """Neighbours of a measurement on a board: programs of this machine do not disturb it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def crowd(self, _threads: int) -> bool:
        """Tell that nobody took a core."""
        return False
