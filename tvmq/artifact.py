"""One file that holds a compiled model, `m.tvmq`: a zip of five members.

    constants.bin   every constant at a multiple of 64 bytes; read in place, so stored uncompressed (deflate
                    would save some 12 % of int8 weights and make loading ten times slower); see arena
    library.so      the native code
    graph.json      the integer module without constants, for re-verification
    golden.bin      the golden input: random, never a sample of the calibration data
    manifest.json   what all this is, with the size and SHA-256 of the other members

The checksums catch damage and mix-ups. They do not catch malice: whoever can write a library can write its
checksum. Loading an artifact runs native code, so load only what you trust, or pin the file's own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmq import container
from tvmq.arena import pack_constants, read_constants, view
from tvmq.container import DEFLATED, STORED, Entry, Member
from tvmq.environment import FFI_VERSION, TVM_VERSION
from tvmq.errors import ArtifactError, UsageError
from tvmq.golden import Golden, Sample, is_float
from tvmq.machine import require_machine
from tvmq.manifest import (
    Manifest,
    MemberEntry,
    SampleEntry,
    SiteEntry,
    check_manifest,
    golden_dtype,
)
from tvmq.new_file import write_atomically
from tvmq.runtime import ALIGNMENT
from tvmq.spec import Built, Description, SiteTrace

FORMAT = 2  # 1: kernels wanted inputs that start at a multiple of 64 bytes
MANIFEST = "manifest.json"
CONTENTS = ("constants.bin", "library.so", "graph.json", "golden.bin")
MAX_MANIFEST = 64 << 20  # bytes inflated; a model of a thousand sites takes one


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A checked artifact in memory; nothing of it has run."""

    manifest: Manifest
    built: Built
    golden: Golden


def save(path: str | Path, built: Built, description: Description, golden: Golden) -> Manifest:
    """Write the artifact and return its manifest.

    The same arguments give the same bytes. The file appears whole or not at all: an older file of that name
    stays until the new one is complete.
    """
    manifest, members = pack(built, description, golden)
    write_atomically(Path(path), lambda file: container.write(file, members))
    return manifest


def pack(built: Built, description: Description, golden: Golden) -> tuple[Manifest, list[Member]]:
    """Return the manifest and the members of the archive, manifest included."""
    constants, arena = pack_constants(built.constants)
    graph = built.graph
    contents = [
        Member.plain("constants.bin", arena, ALIGNMENT),
        Member.deflated("library.so", built.library),
        Member.packed("graph.json", graph) if isinstance(graph, bytes)
        else Member.deflated("graph.json", graph.encode()),
        Member.deflated("golden.bin", b"".join(sample.codes.tobytes() for sample in golden.inputs)),
    ]  # fmt: skip
    manifest = Manifest(
        format=FORMAT,
        tvmq=_own_version(),
        tvm=TVM_VERSION,
        tvm_ffi=FFI_VERSION,
        members=tuple(MemberEntry(m.name, len(m.data), hashlib.sha256(m.data).hexdigest()) for m in contents),
        constants=constants,
        samples=built.samples,
        inputs=built.inputs,
        outputs=built.outputs,
        golden_inputs=tuple(SampleEntry(s.exponent, s.offset) for s in golden.inputs),
        golden_outputs=golden.outputs,
        sites=tuple(
            SiteEntry(s.id, s.kernel, s.shape, s.dtype, s.portable, digest)
            for s, digest in zip(built.sites, golden.sites, strict=True)
        ),
        description=description,
    )
    text = json.dumps(manifest.to_json(), sort_keys=True, allow_nan=False, separators=(",", ":"))
    return manifest, [*contents, Member.deflated(MANIFEST, text.encode())]


def read_manifest(path: str | Path) -> Manifest:
    """Return the manifest of an artifact, which may be for another machine.

    The other members are compared with their checksums, but not inflated. Raises ArtifactError.
    """
    place = Path(path)
    _, entries = container.read(place, frozenset((*CONTENTS, MANIFEST)))
    return _checked_manifest(place, entries)


def open_artifact(
    path: str | Path, *, sha256: str | None = None, meanwhile: Callable[[], object] = lambda: None
) -> Artifact:
    """Read and check an artifact; none of its code is loaded.

    sha256: the whole file's digest, to pin it. meanwhile: called while the file is read and hashed.
    Raises UsageError for a file that cannot be read, ArtifactError for one that is damaged, foreign, or not
    for this machine.
    """
    place = Path(path)
    reading = container.Reading(place, frozenset((*CONTENTS, MANIFEST)))
    meanwhile()
    whole, entries = reading.result()
    if sha256 is not None and (digest := hashlib.sha256(whole).hexdigest()) != sha256.lower():
        raise ArtifactError(f"{path}: SHA-256 is {digest}, {sha256} is wanted; this is another file")
    manifest = _checked_manifest(place, entries)
    library = _inflated(place, "library.so", entries)
    require_machine(place, manifest.description.features, library)
    built = Built(
        library=library,
        constants=read_constants(manifest.constants, entries["constants.bin"].data),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        sites=tuple(SiteTrace(s.id, s.kernel, s.shape, s.dtype, s.portable) for s in manifest.sites),
        graph=_read_graph(entries["graph.json"]),
        samples=manifest.samples,
    )
    return Artifact(manifest, built, _read_golden(place, manifest, _inflated(place, "golden.bin", entries)))


def graph_text(built: Built) -> str:
    """Return the integer module's JSON."""
    graph = built.graph
    try:
        return graph if isinstance(graph, str) else container.inflate(graph).decode()
    except ValueError as error:
        raise ArtifactError(
            f"graph.json is damaged ({error}); copy the artifact or compile it again"
        ) from error


def _read_manifest(path: Path, entry: Entry) -> Manifest:
    if entry.size > MAX_MANIFEST:
        raise ArtifactError(f"{path}: manifest.json claims {entry.size} bytes; do not use this file")
    try:
        data = json.loads(entry.inflated())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: manifest.json is damaged; copy or compile it again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: artifact format {version!r}, this tvmq reads format {FORMAT}; "
            f"use the tvmq that made it, or compile it again"
        )
    try:
        manifest = Manifest.from_json(data, MANIFEST)
    except UsageError as error:
        raise ArtifactError(f"{path}: {error}") from error
    made, here = (manifest.tvm, manifest.tvm_ffi), (TVM_VERSION, FFI_VERSION)
    if made != here:
        raise ArtifactError(
            f"{path}: made with apache-tvm {made[0]} and apache-tvm-ffi {made[1]}, this tvmq runs {here[0]} "
            f"and {here[1]}; compile it again"
        )
    return manifest


def _checked_manifest(path: Path, entries: Mapping[str, Entry]) -> Manifest:
    manifest = _read_manifest(path, entries[MANIFEST])
    _check_members(path, manifest, entries)
    if entries["constants.bin"].method != STORED:
        raise ArtifactError(f"{path}: constants.bin is compressed, plain is wanted; compile it again")
    try:
        check_manifest(manifest, entries["constants.bin"].size, entries["golden.bin"].size)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return manifest


def _check_members(path: Path, manifest: Manifest, entries: Mapping[str, Entry]) -> None:
    if tuple(member.name for member in manifest.members) != CONTENTS:
        raise ArtifactError(f"{path}: manifest.json does not list {list(CONTENTS)}; do not use this file")
    for member in manifest.members:
        entry = entries[member.name]
        if len(entry.data) != member.size:
            raise ArtifactError(
                f"{path}: {member.name} has {len(entry.data)} bytes, {member.size} are wanted; "
                f"copy or compile it again"
            )
        if entry.sha256 != member.sha256:
            raise ArtifactError(
                f"{path}: {member.name} has SHA-256 {entry.sha256[:12]}..., {member.sha256[:12]}... is "
                f"wanted; the file was damaged or changed: copy or compile it again"
            )


def _inflated(path: Path, name: str, entries: Mapping[str, Entry]) -> bytes:
    try:
        return entries[name].inflated()
    except ValueError as error:
        raise ArtifactError(f"{path}: {name} is damaged ({error}); copy or compile it again") from error


def _read_graph(entry: Entry) -> str | bytes:
    # As text where pack stored it plain. As bytes it stays deflated: only verifying reads it.
    return bytes(entry.data) if entry.method == DEFLATED else str(entry.data, "utf-8", "replace")


def _read_golden(path: Path, manifest: Manifest, data: bytes) -> Golden:
    samples, offset = [], 0
    for spec, entry in zip(manifest.inputs, manifest.golden_inputs, strict=True):
        codes = view(memoryview(data), offset, spec.shape, golden_dtype(spec))
        sample = Sample(codes, spec.dtype, entry.exponent, entry.offset)
        with np.errstate(over="ignore"):
            if is_float(spec.dtype) and not np.isfinite(sample.extremes()).all():
                raise ArtifactError(f"{path}: golden input {spec.name!r} is not finite; do not use this file")
        samples.append(sample)
        offset += codes.nbytes
    return Golden(tuple(samples), manifest.golden_outputs, tuple(site.sha256 for site in manifest.sites))


def _own_version() -> str:
    from tvmq import __version__

    return __version__
