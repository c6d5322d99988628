"""Timing in turns."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmq.tune.turns import MIN_ROUNDS, copies, settled, timed


def test_one_lucky_run_does_not_settle_it():
    assert settled([5, 5, 5, 5, 1, 5, 5, 5]) == 5
    assert settled([6, 3, 9, 3, 8, 3, 3, 7, 4]) == 3


def test_every_function_runs_on_every_set_in_turns():
    seen: list[tuple[str, str]] = []

    def function(name: str) -> Any:
        return lambda at, _: seen.append((name, at))

    times = timed([function("a"), function("b")], [["x"], ["y"], ["z"]], ["out"], 1e-9)
    assert [len(t) for t in times] == [MIN_ROUNDS, MIN_ROUNDS]
    assert set(seen) == {(name, at) for name in "ab" for at in "xyz"}


def test_copies_are_of_constants_and_as_many_as_evict():
    computed, constant = np.zeros(8, np.int8), np.ones(100, np.int8)
    found = copies([computed, constant], [False, True], evicting=950)
    assert len(found) == 10
    assert len(copies([computed, constant], [False, True], evicting=950, most=3)) == 3
    assert all(first is computed for first, _ in found)
    assert len({second.ctypes.data for _, second in found}) == 10
