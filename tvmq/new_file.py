"""Write files whole: what stands at a path is what was there before, or all of the new."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from tvmq.errors import UsageError


def require_place(path: Path) -> None:
    """Raise UsageError where no file can be written, said before the work that a file is to hold."""
    folder = _folder_of(path)
    try:
        handle, probe = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")  # root may write, a disk not
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(handle)
    os.unlink(probe)


def _folder_of(path: Path) -> Path:
    """Return the folder of a file to write, or of what the path links to; UsageError for what is no file."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the path of the file to write")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is a device or a pipe, which a file would replace; give another path")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{path}: folder {str(path.parent)!r} does not exist; create it first")
    return folder


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let write fill a file that takes the name `path`, or of what that links to, only when it is complete.

    Raises UsageError where it cannot be written.
    """
    folder, there, temporary = _folder_of(path), path.resolve(), ""
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{there.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            write(cast("BinaryIO", file))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, there)
    except BaseException as error:
        if temporary:
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written ({error.strerror or error}); choose another place")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
