"""Time functions in turns, as cold as in a model; needs only NumPy, so that boards do it, too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.runtime import aligned

SECONDS = 0.05  # of running, for one comparison
MIN_ROUNDS, MAX_ROUNDS = 6, 150
FIRST_RUNS = 3  # that tell how many rounds fit
PATIENCE = 5  # times the seconds that the rounds may take on a busy machine
BLOCKS = 4  # parts of a last comparison: a winner wins in the middle of them, too
MAX_COPIES = 16

Array = npt.NDArray[Any]
Function = Callable[..., None]
Times = list[list[float]]  # per function, seconds in order of the rounds


def timed(
    functions: Sequence[Any],
    sets: Sequence[Sequence[Any]],
    results: Sequence[Any],
    seconds: float,
    *,
    once: Callable[[Any, Sequence[Any], Sequence[Any]], float] | None = None,
) -> Times:
    """Run all functions in turns, each round on other constants than the last.

    once: returns how long one of the functions takes; None: they are called, and this machine's clock tells.
    """
    run = once or _once
    times: Times = [[] for _ in functions]
    # Of several: one may have waited for a core.
    first = sum(min(run(function, sets[0], results) for _ in range(FIRST_RUNS)) for function in functions)
    rounds = min(max(round(seconds / first), MIN_ROUNDS), MAX_ROUNDS)
    ends = time.perf_counter() + PATIENCE * seconds
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > ends:
            break
        for turn in range(len(functions)):
            which = (number + turn) % len(functions)
            # Half of the sets lie between two functions' turns on the same constants.
            at = number + turn * (len(sets) // len(functions) or 1)
            times[which].append(run(functions[which], sets[at % len(sets)], results))
    return times


def settled(times: Sequence[float]) -> float:
    """Return the middle one of the least times of BLOCKS parts: a lucky run counts once."""
    size = math.ceil(len(times) / BLOCKS)
    return float(np.median([min(times[i : i + size]) for i in range(0, len(times), size)]))


def copies(
    arguments: Sequence[Array], constant: Sequence[bool], evicting: int, most: int = MAX_COPIES
) -> list[list[Array]]:
    """Return argument lists with constants of their own; what a model computes is shared.

    There are so many that by the time the first one's turn comes again, `evicting` bytes of other constants
    were read, or `most` lists of them.
    """
    nbytes = sum(a.nbytes for a, c in zip(arguments, constant, strict=True) if c)
    count = min(max(math.ceil(evicting / max(nbytes, 1)), 2), most)
    return [
        [aligned(a.copy()) if c else a for a, c in zip(arguments, constant, strict=True)]
        for _ in range(count)
    ]


def _once(function: Function, arguments: Sequence[Any], results: Sequence[Any]) -> float:
    began = time.perf_counter()
    function(*arguments, *results)
    return time.perf_counter() - began
