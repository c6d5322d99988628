"""What looks wrong with calibration data: findings, and how they reach the user."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tvmq.errors import CalibrationWarning
from tvmq.record import Record

OURS = ("tvmq.", "contextlib")  # modules between tvmq.compile and the warning
# Of the samples: below, a finding about single samples is an oddity of the data, and costs nothing.
WORTH_TELLING = 0.05


class Kind(StrEnum):
    """What a finding is about."""

    FEW_SAMPLES = "few samples"
    REPEATED = "repeated samples"
    CONSTANT = "constant samples"
    NORMALISATION = "normalisation"
    TOKENS = "token ids"
    PADDING = "padding"


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """One thing that looks wrong; each text is part of a sentence."""

    kind: Kind
    seen: str  # with its numbers
    means: str
    way_out: str
    numbers: Mapping[str, float]  # those of `seen`, by what they are

    def __str__(self) -> str:
        return f"calibration: {self.seen}: {self.means}; {self.way_out}"


def announce(findings: Iterable[Finding]) -> None:
    """Warn of each finding, in the name of whoever called tvmq.compile or tvmq.analyze."""
    for finding in findings:
        warnings.warn(CalibrationWarning(finding), stacklevel=_frames_to_caller())


def _frames_to_caller() -> int:
    """Return how many frames up the first one is that is not tvmq's, counted from announce."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(OURS):
        frame, level = frame.f_back, level + 1
    return level


def worth_telling(count: int, samples: int) -> bool:
    """Tell whether so many samples are too many to be an oddity."""
    return count > 0 and count >= WORTH_TELLING * samples
