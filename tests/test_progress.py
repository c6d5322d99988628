"""The clock of stages."""

from __future__ import annotations

from tvmq.progress import StageClock


def test_a_stage_lasts_until_the_next_and_a_repeated_one_adds_up():
    times = iter([0.0, 2.0, 2.0, 5.0, 5.0, 6.0])
    reports: list[tuple[str, int, int]] = []
    clock = StageClock(lambda *report: reports.append(report), now=lambda: next(times))
    clock("calibrate", 0, 2)
    clock("calibrate", 2, 2)
    clock("balance", 0, 1)
    clock("calibrate", 0, 2)
    clock.finish()
    clock.finish()
    assert clock.seconds == {"calibrate": 3.0, "balance": 3.0}
    assert len(reports) == 4
