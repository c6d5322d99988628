"""Results kept as a JSON list of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from readme import write_whole

from tvmq.errors import UsageError
from tvmq.record import Record

R = TypeVar("R", bound=Record)


def load_rows(path: Path, kind: type[R]) -> list[R]:
    """Return the rows in a file, none if there is no file; UsageError for a file that holds anything else."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON ({error}); restore or delete it") from error
    if not isinstance(rows, list):
        raise UsageError(f"{path}: holds no list of rows; restore or delete it")
    return [kind.from_json(row, f"{path}: row {i}") for i, row in enumerate(rows)]


def save_rows(path: Path, rows: Iterable[Record]) -> None:
    """Write rows, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([row.to_json() for row in rows], indent=1) + "\n")
