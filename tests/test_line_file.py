import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tvmq.errors import UsageError
from tvmq.line_file import LineFile
from tvmq.record import Record


@dataclass(frozen=True, slots=True)
class Note(Record):
    note: str


def test_lines_come_back_and_what_is_torn_or_foreign_does_not(tmp_path: Path):
    file = LineFile(tmp_path / "notes", b'{"note": "', "note")
    assert list(file.read(Note.from_json)) == []
    file.append(Note("one"))
    with file.path.open("a") as stream:
        stream.write(json.dumps({"other": 1}) + '\n{"note": "tor')
    file.append(Note("two"))
    assert list(file.read(Note.from_json)) == [Note("one"), Note("two")]


def test_a_file_of_something_else_is_named(tmp_path: Path):
    (tmp_path / "photo").write_bytes(b"\xff\xd8")
    file = LineFile(tmp_path / "photo", b'{"note": "', "note")
    with pytest.raises(UsageError, match="not one line of it is a note record; give another database"):
        list(file.read(Note.from_json))
