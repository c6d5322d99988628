"""A file is written whole or not at all, and never in place of what is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tvmq.errors import UsageError
from tvmq.new_file import require_place, write_atomically


def test_a_link_is_followed_and_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomically(link, lambda file: file.write(b"new") and None)
    assert (link.is_symlink(), real.read_bytes()) == (True, b"new")

    def broken(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UsageError, match=r"link: cannot be written \(No space left on device\); choose another"
    ):
        write_atomically(link, broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert real.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("place", "why"),
    [("pipe", "is a device or a pipe"), (".", "is a folder"), ("no/where", "folder '.*no' does not exist")],
)
def test_a_place_for_no_file_is_refused_before_the_work(tmp_path: Path, place: str, why: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for refused in (require_place, lambda path: write_atomically(path, lambda _file: None)):
        with pytest.raises(UsageError, match=why):
            refused(tmp_path / place)
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UsageError, match=r"/proc/model\.tvmq: cannot be written"):
        require_place(Path("/proc/model.tvmq"))
