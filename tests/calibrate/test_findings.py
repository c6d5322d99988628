"""A finding is one sentence with its numbers, and reaches the user as a warning that carries it."""

from __future__ import annotations

import pytest

import tvmq
from tvmq.calibrate.findings import Finding, Kind, announce, worth_telling

FINDING = Finding(Kind.REPEATED, "3 of 4 samples repeat", "they count as 1", "give others", {"n": 3})


def test_a_finding_is_announced_as_a_warning_that_carries_it():
    with pytest.warns(tvmq.CalibrationWarning) as caught:
        announce([FINDING])
    text = "calibration: 3 of 4 samples repeat: they count as 1; give others"
    assert str(caught[0].message) == str(FINDING) == text
    assert caught[0].message.finding is FINDING
    assert issubclass(tvmq.CalibrationWarning, tvmq.TvmqWarning)
    assert Finding.from_json(FINDING.to_json()) == FINDING


@pytest.mark.parametrize(
    ("count", "samples", "told"), [(0, 0, False), (1, 128, False), (1, 8, True), (7, 128, True)]
)
def test_an_oddity_is_not_told(count: int, samples: int, told: bool):
    assert worth_telling(count, samples) is told
