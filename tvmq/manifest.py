"""manifest.json of an artifact: what each member is, and where the program came from."""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.record import Record
from tvmq.spec import Description, OutputSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class MemberEntry(Record):
    """A member as stored in the archive."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ConstantEntry(Record):
    """Where a constant lies in constants.bin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    logical_shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class SampleEntry(Record):
    """How golden.bin encodes an input; see golden.Sample. Shape and dtype are the input's."""

    exponent: int
    offset: int


@dataclass(frozen=True, slots=True)
class SiteEntry(Record):
    """A site and the checksum of its integer output on the golden input."""

    id: str
    kernel: str
    shape: tuple[int, ...]
    dtype: str
    portable: bool
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """manifest.json."""

    format: int
    tvmq: str
    tvm: str
    tvm_ffi: str
    members: tuple[MemberEntry, ...]
    constants: tuple[ConstantEntry, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    golden_inputs: tuple[SampleEntry, ...]
    golden_outputs: tuple[str, ...]
    sites: tuple[SiteEntry, ...]
    description: Description
