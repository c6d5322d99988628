import hashlib
import io
import zipfile
import zlib

import numpy as np
import pytest

from tvmq import container
from tvmq.container import Member
from tvmq.errors import ArtifactError, UsageError

MEMBERS = (
    Member.plain("big.bin", bytes(range(200)), alignment=64),
    Member.deflated("text.json", b'{"text": 1}' * 50),
)
NAMES = frozenset({"big.bin", "text.json"})
SHA = "0" * 64


def archive(members=MEMBERS):
    file = io.BytesIO()
    container.write(file, members)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zip"


def test_any_zip_program_can_read_it(path):
    path.write_bytes(archive())
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.read("text.json") == b'{"text": 1}' * 50
        assert [info.date_time[:3] for info in file.infolist()] == [(1980, 1, 1)] * 2


def test_an_aligned_member_is_aligned_in_memory(path):
    path.write_bytes(archive([*MEMBERS[1:], *MEMBERS[:1]]))
    _, entries = container.read(path, NAMES)
    data = np.frombuffer(entries["big.bin"].data, np.uint8)
    assert data.ctypes.data % 64 == 0
    assert data.tobytes() == bytes(range(200))
    assert entries["text.json"].inflated() == b'{"text": 1}' * 50


def test_each_member_comes_with_its_checksum(path):
    path.write_bytes(archive())
    _, entries = container.read(path, NAMES)
    assert {n: e.sha256 for n, e in entries.items()} == {
        m.name: hashlib.sha256(m.data).hexdigest() for m in MEMBERS
    }


def test_reading_on_another_thread_gives_and_raises_the_same(path):
    path.write_bytes(archive())
    whole, entries = container.Reading(path, NAMES).result()
    assert bytes(whole) == path.read_bytes()
    assert entries["text.json"].inflated() == b'{"text": 1}' * 50
    path.write_bytes(archive()[:-10])
    with pytest.raises(ArtifactError, match="truncated"):
        container.Reading(path, NAMES).result()


def test_packed_data_is_taken_as_it_is():
    packed = container.deflate(b'{"text": 1}' * 50)
    assert archive([MEMBERS[0], Member.packed("text.json", packed)]) == archive()


def test_a_member_that_inflates_to_more_than_promised_stops_there():
    bomb = container.deflate(bytes(10_000_000))
    with pytest.raises(ValueError, match="100 bytes promised"):
        container.Entry(memoryview(bomb), 100, container.DEFLATED, zlib.crc32(bytes(100)), SHA).inflated()
    with pytest.raises(ValueError, match="inflates to more than"):
        container.inflate(bomb)


def test_a_member_that_promises_to_inflate_to_too_much_is_refused(path):
    zeros = bytes(3_000_000)
    bomb = Member("text.json", container.deflate(zeros), len(zeros), container.DEFLATED, zlib.crc32(zeros))
    path.write_bytes(archive([MEMBERS[0], bomb]))
    with pytest.raises(ArtifactError, match=r"'text\.json' would grow from \d+ to 3000000 bytes, at most"):
        container.read(path, NAMES)


def test_data_that_deflates_too_well_to_be_read_again_is_stored_plain(path):
    zeros = bytes(3_000_000)
    path.write_bytes(archive([MEMBERS[0], Member.deflated("text.json", zeros)]))
    assert container.read(path, NAMES)[1]["text.json"].inflated() == zeros


@pytest.mark.parametrize("method", [container.STORED, container.DEFLATED])
def test_the_crc_is_compared(method):
    text = b"a text"
    data = text if method == container.STORED else container.deflate(text)
    assert container.Entry(memoryview(data), 6, method, zlib.crc32(text), SHA).inflated() == text
    with pytest.raises(ValueError, match="CRC"):
        container.Entry(memoryview(data), 6, method, zlib.crc32(b"a test"), SHA).inflated()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, world", r"not a tvmq artifact \(no zip archive\)"),
        (archive()[:-30], "the archive is truncated or its directory is damaged"),
        (archive(MEMBERS[:1]), r"member 'text\.json' is missing"),
        (archive([*MEMBERS, Member.plain("extra", b"")]), "unknown member 'extra'"),
        (archive([*MEMBERS, Member.plain("../evil", b"")]), r"member '\.\./evil' points outside"),
        (archive([*MEMBERS, Member.plain("/etc/evil", b"")]), "points outside the archive"),
        (archive([*MEMBERS, MEMBERS[1]]), "a member appears twice"),
        (b"PK\x03\x05" + archive()[4:], r"member 'big\.bin' is damaged"),
    ],
)
def test_what_is_wrong_is_said(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        container.read(path, NAMES)


def test_a_missing_file_is_said(path):
    with pytest.raises(UsageError, match=r"a\.zip: no such file"):
        container.read(path, NAMES)
    path.mkdir()
    with pytest.raises(UsageError, match=r"a\.zip: cannot be read"):
        container.read(path, NAMES)


def test_an_archive_over_two_gigabytes_is_refused(monkeypatch):
    monkeypatch.setattr(container, "MAX_ARCHIVE", 100)
    with pytest.raises(ArtifactError, match=r"big\.bin: the artifact would pass 2 GiB"):
        archive()


def test_a_model_is_told_from_a_damaged_artifact(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"\x08\x08")
    with pytest.raises(ArtifactError, match="is a model, an artifact is wanted; `tvmq compile` makes one"):
        container.read(model, NAMES)
