"""A file of JSON lines that is only ever appended to: whatever ends the process, lines once written stay.

A line is on the disk before `append` returns. One that a crash has torn is skipped, and the next one does
not stick to it; files may be joined by `cat`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tvmq.errors import UsageError
from tvmq.record import Record

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class LineFile:
    """A file whose lines all begin with `start`; `holds` names these for people ("tuning", "cost")."""

    path: Path
    start: bytes
    holds: str

    def append(self, line: Record) -> None:
        """Write one line and wait until it is on the disk."""
        text = json.dumps(line.to_json(), ensure_ascii=False, allow_nan=False)
        with self._opened() as handle:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            rest = b"\n" * torn + text.encode() + b"\n"
            # One write per line, as several processes may append to one file; but a disk that fills up
            # takes a part of it, and refuses the rest.
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)

    def require_writable(self) -> None:
        """Make the file, empty if there is none; raise UsageError where it cannot be written."""
        with self._opened():
            pass

    def read(self, decode: Callable[[Any], Row]) -> Iterator[Row]:
        """Yield what decode makes of each line; those are skipped that it refuses with a UsageError.

        Raises UsageError for a file of which not one line is of this kind.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be read as a {self.holds} database ({error.strerror})"
            ) from error
        readable = 0
        for text in content.splitlines():
            try:
                yield decode(json.loads(text))
                readable += 1
            except (UsageError, ValueError, RecursionError):  # torn, or of another version
                continue
        if not readable and content[: len(self.start)] != self.start[: len(content)]:
            raise UsageError(
                f"{self.path}: not one line of it is a {self.holds} record; give another database"
            )

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                yield handle
            finally:
                os.close(handle)
        except FileNotFoundError as error:
            folder = str(self.path.parent)
            raise UsageError(f"{self.path}: folder {folder!r} does not exist; create it first") from error
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be written ({error.strerror}); give another database"
            ) from error
