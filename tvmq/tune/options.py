"""What a user says about tuning."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from tvmq.environment import cache_folder
from tvmq.errors import UsageError

FILE_NAME = "tuning.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """How far `compile` searches for faster decisions, and where it keeps what it measured.

    trials: decisions to try for each distinct kernel; those that the database holds count. 0 measures
    nothing: only what was found before is used. minutes: stop after so long, whatever is left to try; None:
    no limit. database: a file of JSON lines, made if absent, in a folder that exists; None: tuning.jsonl in
    the user's cache folder.
    """

    trials: int = 32
    minutes: float | None = None
    database: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.trials, int) or isinstance(self.trials, bool) or self.trials < 0:
            raise UsageError(
                f"Tune: trials={self.trials!r}, a number from 0 (use the database, measure nothing) is wanted"
            )
        limit = self.minutes
        if limit is not None and (
            not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < math.inf
        ):
            raise UsageError(f"Tune: minutes={limit!r}, a number over 0 is wanted; leave it out for no limit")
        if self.database is not None and not isinstance(self.database, str | os.PathLike):
            raise UsageError(
                f"Tune: database={self.database!r}, a path is wanted; leave it out for {FILE_NAME} in the "
                f"cache folder"
            )

    @property
    def path(self) -> Path:
        """Return where the database is."""
        return default_database() if self.database is None else Path(self.database)


def make_default_folder() -> None:
    """Make the folder of the default database, which nobody chose and so nobody made."""
    path = default_database()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: its folder cannot be made ({error.strerror}); give another database"
        ) from error


def default_database() -> Path:
    """Return the file in the cache folder."""
    return cache_folder() / FILE_NAME
