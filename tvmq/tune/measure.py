"""Build candidates in this process, check their bits, and time them in turns with the default kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.runtime import aligned_empty
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile
from tvmq.tune.turns import BLOCKS, MAX_COPIES, SECONDS, copies, settled, timed

# In a model, other kernels run between two calls, and constants come from beyond the second cache level.
EVICTING_CACHES = 4
INDEX_BYTES = 4  # of the narrowest type that holds row numbers

Array = npt.NDArray[Any]


class BrokenCandidateError(Exception):
    """Decisions by which a kernel cannot be built, does not run, or computes other bits than the default."""

    def __init__(self, decisions: Decisions, problem: str) -> None:
        super().__init__(problem)
        self.decisions = decisions


class Bench(Protocol):
    """Times decisions of one kernel."""

    def trial(self, decisions: Decisions) -> tuple[float, float]:
        """Return the seconds of these decisions and of the default; raise BrokenCandidateError."""

    def expect(self, several: Sequence[Decisions]) -> None:
        """Hear which trials come next: several boards may begin with them."""

    def final(self, finalists: Sequence[Decisions]) -> list[float]:
        """Return the seconds of the default, then of the finalists, from a longer comparison.

        Raise BrokenCandidateError for the first one that no longer works.
        """

    def close(self) -> None:
        """Begin nothing more of what `expect` heard of."""


class KernelBench:
    """The Bench of a kernel on this machine. The calling thread's pool runs it: see runtime.use_threads."""

    def __init__(self, use: Use, profile: TargetProfile, *, seed: int = 0) -> None:
        self._kernel = use.kernel
        self._target = profile.tvm()
        default = use.kernel.function()
        self._default = compiled(default, self._target)
        evicting = EVICTING_CACHES * profile.machine.l2_bytes
        self._sets, _, self._outputs = operands(use, default, evicting, MAX_COPIES, seed)
        self._results = [tvm.runtime.from_dlpack(output) for output in self._outputs]
        self._expected = self._run(self._default)

    def trial(self, decisions: Decisions) -> tuple[float, float]:
        """Return the seconds of these decisions and of the default; raise BrokenCandidateError."""
        functions = [self._default, self._checked(decisions)]
        default, candidate = timed(functions, self._sets, self._results, SECONDS)
        return min(candidate), min(default)

    def final(self, finalists: Sequence[Decisions]) -> list[float]:
        """Return the seconds of the default, then of the finalists, from a longer comparison."""
        functions = [self._default, *(self._checked(decisions) for decisions in finalists)]
        times = timed(functions, self._sets, self._results, BLOCKS * SECONDS)
        return [settled(each) for each in times]

    def _checked(self, decisions: Decisions) -> Callable[..., None]:
        try:
            function = compiled(self._kernel.function(decisions), self._target)
            found = self._run(function)
        except Exception as error:  # TVM and LLVM have no common class for what they refuse
            said = " ".join(str(error).split())
            raise BrokenCandidateError(decisions, f"{type(error).__name__}: {said[-200:]}") from error
        if found != self._expected:
            raise BrokenCandidateError(decisions, "other bits than the default kernel's")
        return function

    def _run(self, function: Callable[..., None]) -> bytes:
        for output in self._outputs:
            output.view(np.uint8).fill(0x55)
        function(*self._sets[0], *self._results)
        return b"".join(output.tobytes() for output in self._outputs)

    def expect(self, several: Sequence[Decisions]) -> None:
        """Do nothing: here, one trial runs after the other."""

    def close(self) -> None:
        """Do nothing: no trial is under way."""


def compiled(func: Any, target: Any) -> Callable[..., None]:
    """Return a PrimFunc as a function of tensors, outputs last."""
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    made: Callable[..., None] = tvm.compile(module, target)["main"]
    return made


def operands(
    use: Use, func: Any, evicting: int, most: int, seed: int = 0
) -> tuple[list[list[Any]], list[Array], list[Array]]:
    """Return argument lists for a kernel's PrimFunc, the arrays of what a model computes, and its outputs.

    Each list has constants of its own, so that by the time the first one's turn comes again, `evicting` bytes
    of others were read, or `most` lists of them.
    """
    arguments, outputs = arguments_of(use, func, seed)
    constant = [c is not None for c in use.arguments]
    sets = [
        [tvm.runtime.from_dlpack(a) for a in each] for each in copies(arguments, constant, evicting, most)
    ]
    computed = [a for a, c in zip(arguments, use.arguments, strict=True) if c is None]
    return sets, computed, [aligned_empty(*output) for output in outputs]


def arguments_of(use: Use, func: Any, seed: int) -> tuple[list[Array], list[tuple[tuple[int, ...], str]]]:
    """Return the arguments of a kernel's PrimFunc without its outputs, and shape and dtype of these."""
    shapes = [(tuple(int(d) for d in p.shape), str(p.ty.dtype)) for p in func.params]
    inputs, outputs = shapes[: len(use.arguments)], shapes[len(use.arguments) :]
    return _arguments(use, inputs, np.random.default_rng(seed)), outputs


def _arguments(use: Use, shapes: Sequence[tuple[tuple[int, ...], str]], chance: Any) -> list[Array]:
    """Return the model's own constants, and for what it computes random values of the whole dtype.

    But 0 where that is int32 or int64: such may be row numbers, which must lie in their range.
    """
    arguments = []
    for (shape, dtype), constant in zip(shapes, use.arguments, strict=True):
        array = aligned_empty(shape, dtype)
        if constant is not None:
            array[...] = constant
        elif array.dtype == np.bool_:
            array[...] = chance.integers(0, 2, shape)
        elif np.issubdtype(array.dtype, np.floating):
            array[...] = chance.standard_normal(shape)
        elif array.itemsize >= INDEX_BYTES:
            array.fill(0)
        else:
            info = np.iinfo(array.dtype)
            array[...] = chance.integers(info.min, info.max, shape, array.dtype, endpoint=True)
        arguments.append(array)
    return arguments
