"""The commands that tell about this machine: targets, doctor."""

from __future__ import annotations

from tvmq import report
from tvmq.cli_output import show
from tvmq.doctor import examine
from tvmq.errors import EnvironmentMismatchError
from tvmq.target import builtin_profiles, native_profile


def targets(*, as_json: bool) -> int:
    """List the built-in profiles."""
    try:
        native = native_profile().name
    except EnvironmentMismatchError:
        native = None
    profiles = builtin_profiles()
    data = {"native": native, "targets": [profile.to_dict() for profile in profiles]}
    show(data, report.targets(profiles, native), as_json=as_json)
    return 0


def doctor(*, as_json: bool) -> int:
    """Examine the environment; the exit code tells whether artifacts run here."""
    found = examine()
    data = {"can_run": found.can_run, "can_compile": found.can_compile, **found.to_json()}
    show(data, report.diagnosis(found), as_json=as_json)
    return 0 if found.can_run else EnvironmentMismatchError.exit_code
