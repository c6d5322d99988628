"""The archive under an artifact: a plain zip, written byte for byte the same every time and read in one go.

Python's zipfile cannot place a member at a chosen offset, nor take data that is compressed already, so
writing is done here (PKZIP APPNOTE 4.3; no zip64). Reading trusts nothing the archive says about itself.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tvmq.errors import ArtifactError, UsageError
from tvmq.runtime import aligned_empty

STORED, DEFLATED = 0, 8
ZIP_VERSION = 20  # 2.0: deflate
MADE_BY_UNIX = 3 << 8 | ZIP_VERSION
UNIX_FILE = 0o100644 << 16  # a regular file, rw-r--r--
DOS_DATE = 0x21  # 1980-01-01, the first day a zip can name: the time of writing must not show
PADDING_ID = 0xD935  # the extra field that Android's zipalign pads with
MAX_ARCHIVE = 2**31 - 1  # bytes
# How far a member may grow, in bytes: machine code and JSON shrink to a third and a thirtieth; deflate's own
# limit, a thousandth, would let a small file fill the memory.
MAX_INFLATED, MAX_RATIO, FREE_GROWTH = 1 << 30, 200, 1 << 20

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive in the form it has there; data is deflated or plain."""

    name: str
    data: bytes | memoryview
    size: int  # bytes after inflating
    method: int
    crc: int  # CRC-32 of the inflated bytes
    alignment: int = 1  # of the data's offset in the file

    @classmethod
    def plain(cls, name: str, data: bytes | memoryview, alignment: int = 1) -> Member:
        """Store data as it is."""
        return cls(name, data, len(data), STORED, zlib.crc32(data), alignment)

    @classmethod
    def deflated(cls, name: str, data: bytes) -> Member:
        """Compress data, unless it shrinks so far that reading would refuse it."""
        packed = deflate(data)
        if len(data) > inflated_limit(len(packed)):
            return cls.plain(name, data)
        return cls(name, packed, len(data), DEFLATED, zlib.crc32(data))

    @classmethod
    def packed(cls, name: str, data: bytes) -> Member:
        """Take data that `deflate` made."""
        plain = inflate(data)
        return cls(name, data, len(plain), DEFLATED, zlib.crc32(plain))


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One file of an archive that was read."""

    data: memoryview  # as stored
    size: int  # bytes after inflating, as the archive claims
    method: int
    crc: int  # CRC-32 of the inflated bytes, as the archive claims
    sha256: str  # of data

    def inflated(self) -> bytes:
        """Return the plain bytes; never more than the archive claims. Raises ValueError for broken data."""
        plain = bytes(self.data) if self.method == STORED else _inflate(self.data, self.size)
        if plain is None or len(plain) != self.size:
            raise ValueError(f"{self.size} bytes promised, the data holds another number")
        if zlib.crc32(plain) != self.crc:
            raise ValueError("its CRC-32 is another one")
        return plain


def deflate(data: bytes) -> bytes:
    """Return data as a raw deflate stream."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


def inflate(data: bytes | memoryview) -> bytes:
    """Return what `deflate` was given; raises ValueError for broken data and for data that grows too far."""
    plain = _inflate(data, inflated_limit(len(data)))
    if plain is None:
        raise ValueError(f"it inflates to more than {inflated_limit(len(data))} bytes, or does not end")
    return plain


def inflated_limit(stored: int) -> int:
    """Return how many bytes at most so many stored ones may become."""
    return min(MAX_INFLATED, MAX_RATIO * stored + FREE_GROWTH)


def _inflate(data: bytes | memoryview, limit: int) -> bytes | None:
    """Return the plain bytes, None if they are more than limit or the stream is not exactly data."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return plain if len(plain) <= limit and machine.eof and not machine.unused_data else None


def write(file: BinaryIO, members: Iterable[Member]) -> None:
    """Write a whole archive at the start of an empty file."""
    directory = bytearray()
    offset = count = 0
    for member in members:
        name = member.name.encode("ascii")
        extra = _padding(offset + LOCAL.size + len(name), member.alignment)
        sizes = (member.crc, len(member.data), member.size, len(name), len(extra))
        if offset + len(member.data) > MAX_ARCHIVE:
            raise ArtifactError(f"{member.name}: the artifact would pass 2 GiB, which its format cannot hold")
        file.write(LOCAL.pack(b"PK\x03\x04", ZIP_VERSION, 0, member.method, 0, DOS_DATE, *sizes))
        file.write(name + extra)
        file.write(member.data)
        head = (b"PK\x01\x02", MADE_BY_UNIX, ZIP_VERSION, 0, member.method, 0, DOS_DATE)
        directory += CENTRAL.pack(*head, *sizes, 0, 0, 0, UNIX_FILE, offset)
        directory += name + extra
        offset += LOCAL.size + len(name) + len(extra) + len(member.data)
        count += 1
    file.write(directory)
    file.write(END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0))


def read(path: Path, names: frozenset[str]) -> tuple[memoryview, Mapping[str, Entry]]:
    """Return the file's bytes, at a 64-byte boundary, and its members, which must be exactly `names`.

    Raises ArtifactError, and UsageError for a file that cannot be read. Contents are not checked beyond lying
    inside the file and growing within limits.
    """
    try:
        with path.open("rb") as file:
            infos = zipfile.ZipFile(file).infolist()
            _check_names(path, [info.filename for info in infos], names)
            file.seek(0, 2)
            whole = memoryview(aligned_empty((file.tell(),), np.uint8))  # type: ignore[arg-type]
            file.seek(0)
            got = file.readinto(whole)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file, wanted an artifact of `tvmq compile`; check the path"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give another path") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ArtifactError(f"{path}: {_why_no_zip(path)}") from error
    if got != len(whole):
        raise ArtifactError(f"{path}: the file changed while it was read; try again")
    return whole, {info.filename: _entry(path, whole, info) for info in infos}


class Reading:
    """`read` on a thread of its own: reading and hashing leave the interpreter free for imports."""

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self._arguments = path, names
        self._outcome: tuple[memoryview, Mapping[str, Entry]] | BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="tvmq.read")
        self._thread.start()

    def result(self) -> tuple[memoryview, Mapping[str, Entry]]:
        """Return what `read` returns, or raise what it raises."""
        self._thread.join()
        if isinstance(self._outcome, tuple):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome

    def _read(self) -> None:
        try:
            self._outcome = read(*self._arguments)
        except BaseException as error:
            self._outcome = error


def _padding(offset: int, alignment: int) -> bytes:
    if offset % alignment == 0:
        return b""
    length = -(offset + 4) % alignment
    return struct.pack("<2H", PADDING_ID, length) + bytes(length)


def _check_names(path: Path, found: list[str], wanted: frozenset[str]) -> None:
    for name in found:
        if name.startswith(("/", "\\")) or ".." in name or "\\" in name or ":" in name:
            raise ArtifactError(f"{path}: member {name!r} points outside the archive; do not use this file")
    missing, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing:
        raise ArtifactError(f"{path}: member {missing[0]!r} is missing; an artifact holds {sorted(wanted)}")
    if extra:
        raise ArtifactError(f"{path}: unknown member {extra[0]!r}; an artifact holds only {sorted(wanted)}")
    if len(found) != len(wanted):
        raise ArtifactError(f"{path}: a member appears twice; do not use this file")


def _entry(path: Path, whole: memoryview, info: zipfile.ZipInfo) -> Entry:
    start = info.header_offset
    header = bytes(whole[start : start + LOCAL.size])
    if len(header) < LOCAL.size or header[:4] != b"PK\x03\x04":
        raise ArtifactError(f"{path}: member {info.filename!r} is damaged; copy or compile it again")
    fields = LOCAL.unpack(header)
    method, name_length, extra_length = fields[3], fields[9], fields[10]
    begin = start + LOCAL.size + name_length + extra_length
    data = whole[begin : begin + info.compress_size]
    odd = info.flag_bits or method != info.compress_type or method not in (STORED, DEFLATED)
    if odd or len(data) != info.compress_size or (method == STORED and info.file_size != info.compress_size):
        raise ArtifactError(f"{path}: member {info.filename!r} is damaged; copy or compile it again")
    limit = inflated_limit(len(data))
    if method == DEFLATED and info.file_size > limit:
        raise ArtifactError(
            f"{path}: member {info.filename!r} would grow from {len(data)} to {info.file_size} bytes, "
            f"at most {limit} are allowed; do not use this file"
        )
    return Entry(data, info.file_size, method, info.CRC, hashlib.sha256(data).hexdigest())


def _why_no_zip(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return "the archive is truncated or its directory is damaged; copy or compile it again"
    if path.suffix == ".onnx":
        return "is a model, an artifact is wanted; `tvmq compile` makes one of it"
    return "not a tvmq artifact (no zip archive); copy or compile it again"
