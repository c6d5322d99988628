"""manifest.json of an artifact: what each member is, and where the program came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmq import bit_planes
from tvmq.bit_planes import BYTE
from tvmq.errors import ArtifactError
from tvmq.golden import is_float
from tvmq.record import Record
from tvmq.runtime import ALIGNMENT
from tvmq.spec import Description, OutputSpec, TensorSpec

DTYPES = frozenset(
    ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
    + [f"float{bits}" for bits in (16, 32, 64)]
)
MAX_RANK, MAX_TENSOR = 32, 1 << 40  # bytes; far below where NumPy's own arithmetic overflows
MAX_EXPONENT, MAX_OFFSET = 1100, 1 << 16  # of golden inputs: float64 ends at 2**1024; codes have 8 bits


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
    bits: int  # of each int8 that are stored, the highest, see bit_planes; of other dtypes all are
    site: str  # as in spec.Constant
    weight_bits: int

    @property
    def stored_bytes(self) -> int:
        """Return the bytes it takes in constants.bin."""
        if self.dtype != "int8" or self.bits == BYTE:
            return nbytes(self.shape, self.dtype)
        return bit_planes.registers(self.bits, -(-math.prod(self.shape) // ALIGNMENT)) * ALIGNMENT


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
    samples: int  # of a call, each computed by itself: the code takes and returns one
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    golden_inputs: tuple[SampleEntry, ...]
    golden_outputs: tuple[str, ...]
    sites: tuple[SiteEntry, ...]
    description: Description


def check_manifest(manifest: Manifest, constants_size: int, golden_size: int) -> None:
    """Raise ArtifactError where the parts of a manifest do not fit together; sizes are bytes of the members.

    Afterwards every tensor is of a known dtype and a sane size, and every constant and golden input lies in
    its member. Whether the code agrees shows when it runs.
    """
    for number, spec in enumerate(manifest.inputs):
        _check_tensor(f"input {number}", spec.shape, spec.dtype)
    for number, output in enumerate(manifest.outputs):
        _check_tensor(f"output {number}", output.shape, output.dtype)
    for site in manifest.sites:
        _check_tensor(f"site {site.id!r}", site.shape, site.dtype)
    _check_samples(manifest)
    names = [spec.name for spec in manifest.inputs]
    if len(set(names)) != len(names):
        raise ArtifactError(f"inputs {names} do not differ in name; do not use this file")
    _check_constants(manifest.constants, constants_size)
    _check_golden(manifest, golden_size)


def _check_samples(manifest: Manifest) -> None:
    samples = manifest.samples
    shapes = [spec.shape for spec in (*manifest.inputs, *manifest.outputs)]
    shapes += [site.shape for site in manifest.sites]
    if samples < 1 or (samples > 1 and any(not shape or shape[0] % samples for shape in shapes)):
        raise ArtifactError(f"{samples} samples do not share out its tensors' rows; do not use this file")


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Return the size of a tensor."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def golden_dtype(spec: TensorSpec) -> str:
    """Return the dtype of an input's codes in golden.bin; see golden.Sample."""
    return "uint8" if is_float(spec.dtype) else spec.dtype


def _check_tensor(what: str, shape: Sequence[int], dtype: str) -> None:
    if dtype not in DTYPES:
        raise ArtifactError(f"{what} has dtype {dtype!r}, a number's is wanted; do not use this file")
    sane = len(shape) <= MAX_RANK and all(dim >= 0 for dim in shape)
    # Empty dimensions do not excuse the others: NumPy multiplies these too.
    if not sane or nbytes([dim or 1 for dim in shape], dtype) > MAX_TENSOR:
        raise ArtifactError(f"{what} has a shape that no tensor has; do not use this file")


def _check_constants(constants: Sequence[ConstantEntry], size: int) -> None:
    """Each constant follows the one before, at the next multiple of 64 bytes; the last ends the member."""
    end = 0
    for constant in constants:
        what = f"constant {constant.name!r}"
        _check_tensor(what, constant.shape, constant.dtype)
        _check_tensor(f"{what} before packing", constant.logical_shape, constant.dtype)
        packed = constant.dtype == "int8" and 2 <= constant.bits < BYTE
        if not packed and constant.bits != BYTE * np.dtype(constant.dtype).itemsize:
            raise ArtifactError(f"{what} has {constant.bits} bits of {constant.dtype}; do not use this file")
        begin = end + -end % ALIGNMENT
        end = constant.offset + constant.stored_bytes
        if constant.offset < 0 or end > size:
            raise ArtifactError(f"{what} does not lie in constants.bin; do not use this file")
        if constant.offset != begin:
            raise ArtifactError(
                f"{what} begins at byte {constant.offset} of constants.bin, {begin} is wanted; "
                f"do not use this file"
            )
    if end != size:
        raise ArtifactError(f"constants.bin has {size} bytes, its constants take {end}; do not use this file")


def _check_golden(manifest: Manifest, size: int) -> None:
    for what, found, wanted in (
        ("inputs", manifest.golden_inputs, manifest.inputs),
        ("outputs", manifest.golden_outputs, manifest.outputs),
    ):
        if len(found) != len(wanted):
            raise ArtifactError(
                f"{len(found)} golden {what}, {len(wanted)} are wanted, one for each of the model's; "
                f"do not use this file"
            )
    wanted_size = sum(nbytes(spec.shape, golden_dtype(spec)) for spec in manifest.inputs)
    if size != wanted_size:
        listed = ", ".join(map(str, manifest.inputs))
        raise ArtifactError(
            f"golden.bin has {size} bytes, {wanted_size} are wanted for {listed}; do not use this file"
        )
    for spec, entry in zip(manifest.inputs, manifest.golden_inputs, strict=True):
        if abs(entry.exponent) > MAX_EXPONENT or abs(entry.offset) > MAX_OFFSET:
            raise ArtifactError(
                f"golden input {spec.name!r} has an exponent or offset that no {spec.dtype} needs; "
                f"do not use this file"
            )
