"""Everything tvmq raises or warns of on purpose.

    TvmqError
    ├── UsageError              exit 2   an argument or a pattern the user gave, a file that is absent
    │   ├── CalibrationError             the calibration data
    │   ├── InputError                   an array given to a compiled model
    │   └── InfeasibleBudgetError        limits that no plan of bits keeps to
    ├── UnsupportedModelError   exit 3   the model holds something tvmq cannot import or compile
    ├── ArtifactError           exit 4   an artifact that is damaged, foreign, or not for this machine
    ├── EnvironmentMismatchError exit 5  versions, linker, or packages of this environment
    │   ├── DeviceError                  a tracker or a board
    │   └── GpuError                     a GPU that ran out of memory, or failed
    ├── VerificationError       exit 6   compiled output differs from the reference
    └── InterruptedRunError     exit 130 Ctrl-C in a command that keeps what it has done so far

    TvmqWarning
    ├── CalibrationWarning               calibration data that works but looks wrong
    ├── BusyMachineWarning               measurements that other programs disturbed
    └── LostBoardWarning                 a board that was lost, and is asked again or replaced

Messages are one sentence: where, what is, what is wanted, the way out.
"""

from __future__ import annotations

from typing import ClassVar


class TvmqError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code: ClassVar[int] = 1


class UsageError(TvmqError, ValueError):
    """An argument, a file or a pattern that cannot be used as given."""

    exit_code = 2


class CalibrationError(UsageError):
    """Calibration data that is absent, broken or says nothing."""


class InputError(UsageError):
    """An array whose shape or dtype is not what the compiled model takes."""


class InfeasibleBudgetError(UsageError):
    """Limits of time, size, memory or accuracy that no choice of bits keeps to."""


class SolverTooSlowError(InfeasibleBudgetError):
    """Limits of which the solver could not tell in time whether any choice of bits keeps to them."""


class UnsupportedModelError(TvmqError):
    """A model with an operator or a shape that tvmq cannot compile."""

    exit_code = 3


class ArtifactError(TvmqError):
    """A file that is not a sound artifact, or not one for this machine."""

    exit_code = 4


class EnvironmentMismatchError(TvmqError):
    """A version, package or program of this environment that does not fit."""

    exit_code = 5


class DeviceError(EnvironmentMismatchError):
    """A tracker or a board that cannot be reached, or was lost."""


class ProgramCrashError(DeviceError):
    """A program that crashed on a board, or did not end in time."""


class GpuError(EnvironmentMismatchError):
    """A GPU that ran out of memory, or failed while it computed."""


class VerificationError(TvmqError):
    """Compiled output that is not bit for bit the reference's."""

    exit_code = 6


class InterruptedRunError(TvmqError):
    """Ctrl-C in a command that says what it keeps."""

    exit_code = 130


class TvmqWarning(UserWarning):
    """Base of all warnings: the work goes on, its result may not be what the user wants."""


class CalibrationWarning(TvmqWarning):
    """Calibration data that looks wrong; finding is the calibrate.findings.Finding that the text tells."""

    def __init__(self, finding: object) -> None:
        super().__init__(str(finding))
        self.finding = finding


class BusyMachineWarning(TvmqWarning):
    """Measurements that other programs disturbed."""


class LostBoardWarning(TvmqWarning):
    """A board that was lost; it is asked once more, or another one."""
