import dataclasses
import hashlib
import json
import os
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from tests import tiny_program
from tvmq import artifact, container
from tvmq.container import Member
from tvmq.errors import ArtifactError, UsageError
from tvmq.golden import Golden, checksum, sample_of
from tvmq.machine import ELF_MACHINES, this_machine
from tvmq.spec import TensorSpec

# An ELF header for this machine and nothing behind it: these tests never run the code.
MACHINE = {name: number for number, name in ELF_MACHINES.items()}[this_machine()]
ELF = b"\x7fELF" + bytes(14) + MACHINE.to_bytes(2, "little")
X = tiny_program.an_input()
GOLDEN = Golden((sample_of(X),), (checksum(X), checksum(X)), (checksum(X + 1), checksum(X + 2)))


def fake_built(code=ELF):
    return tiny_program.built(code=code)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.tvmq"
    artifact.save(path, fake_built(), tiny_program.description(), GOLDEN)
    return path


def rewrite(path, *, manifest=lambda data: data, **members):
    """Replace members, and edit the manifest as JSON; sizes and checksums stay those of before."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    contents |= {name.replace("_", "."): data for name, data in members.items()}
    contents[artifact.MANIFEST] = json.dumps(manifest(json.loads(contents[artifact.MANIFEST]))).encode()
    with path.open("wb") as file:
        plain = Member.plain("constants.bin", contents.pop("constants.bin"), 64)
        container.write(file, [plain, *(Member.deflated(n, d) for n, d in contents.items())])


def edited(*keys, value):
    def edit(data):
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return data

    return edit


def without(key, number):
    def edit(data):
        del data[key][number]
        return data

    return edit


def twice(key, number):
    def edit(data):
        data[key].append(data[key][number])
        return data

    return edit


def test_round_trip(path):
    before, opened = fake_built(), artifact.open_artifact(path)
    after = opened.built
    assert (after.library, after.inputs, after.outputs, after.sites) == (
        before.library, before.inputs, before.outputs, before.sites,
    )  # fmt: skip
    assert artifact.graph_text(after) == before.graph
    assert opened.manifest.description == tiny_program.description()
    for old, new in zip(before.constants, after.constants, strict=True):
        assert (old.name, old.layout, old.logical_shape) == (new.name, new.layout, new.logical_shape)
        np.testing.assert_array_equal(old.array, new.array)
        assert new.array.ctypes.data % 64 == 0
    np.testing.assert_array_equal(opened.golden.inputs[0].value(), X)
    assert (opened.golden.outputs, opened.golden.sites) == (GOLDEN.outputs, GOLDEN.sites)


def test_the_same_program_gives_the_same_bytes(path, tmp_path):
    opened = artifact.open_artifact(path)
    for name, built in (("again", fake_built()), ("loaded", opened.built)):
        artifact.save(tmp_path / name, built, tiny_program.description(), opened.golden)
        assert (tmp_path / name).read_bytes() == path.read_bytes()


def test_overhead_is_small(path):
    constants = sum(c.array.nbytes for c in fake_built().constants)
    assert path.stat().st_size < constants + 4000


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch, failure):
    before = path.read_bytes()
    write = container.write

    def fail_midway(file, members):
        write(file, members[:2])
        raise failure

    monkeypatch.setattr(container, "write", fail_midway)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        artifact.save(path, fake_built(), tiny_program.description(("avx2",)), GOLDEN)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_places_that_cannot_be_written_are_said(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give the path of the file to write"):
        artifact.save(tmp_path, fake_built(), tiny_program.description(), GOLDEN)
    with pytest.raises(UsageError, match=r"folder '.*absent' does not exist; create it first"):
        artifact.save(tmp_path / "absent" / "m", fake_built(), tiny_program.description(), GOLDEN)


@pytest.mark.parametrize("member", artifact.CONTENTS)
def test_a_flipped_bit_in_any_member_is_found(path, member):
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(member)
        start = info.header_offset + 30 + len(info.filename) + len(info.extra)
    data = bytearray(path.read_bytes())
    data[start + info.compress_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{member} has SHA-256 .*damaged or changed"):
        artifact.open_artifact(path)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_the_manifest_is_found(path):
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(artifact.MANIFEST)
        start = info.header_offset + 30 + len(info.filename) + len(info.extra)
    before, data = artifact.open_artifact(path).manifest, bytearray(path.read_bytes())
    for place in range(start, start + info.compress_size):
        bit = 1 << place % 8
        data[place] ^= bit
        path.write_bytes(data)
        data[place] ^= bit
        try:
            found = artifact.open_artifact(path).manifest
        except ArtifactError:
            continue
        assert found == before  # some bits of a deflate stream mean nothing, as those that fill its last byte


def test_a_bomb_is_refused_before_it_grows(path):
    zeros = bytes(50_000_000)
    bomb = Member("library.so", container.deflate(zeros), len(zeros), container.DEFLATED, zlib.crc32(zeros))
    with zipfile.ZipFile(path) as file:
        others = [Member.plain(n, file.read(n)) for n in file.namelist() if n != "library.so"]
    with path.open("wb") as file:
        container.write(file, [bomb, *others])
    del zeros
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"'library\.so' would grow from \d+ to 50000000 bytes"):
        artifact.open_artifact(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_graph_that_grows_beyond_all_measure_is_refused():
    built = dataclasses.replace(fake_built(), graph=container.deflate(bytes(10_000_000)))
    with pytest.raises(ArtifactError, match=r"graph\.json is damaged .*compile it again"):
        artifact.graph_text(built)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (edited("format", value=1), "artifact format 1, this tvmq reads format 2; use the tvmq that made it"),
        (edited("tvm", value="0.28.0"), r"made with apache-tvm 0\.28\.0 and .*compile it again"),
        (edited("surprise", value=1), r"manifest\.json: unknown key 'surprise'"),
        (edited("inputs", 0, "shape", value="x"), r"manifest\.json\.inputs\[0\]\.shape: str 'x' found"),
        (edited("members", 1, "size", value=7), r"library\.so has \d+ bytes, 7 are wanted"),
        (edited("members", value=[]), "manifest.json does not list"),
        (edited("constants", 0, "offset", value=1 << 40), r"constant 'fc\.weight' does not lie in"),
        (edited("constants", 0, "offset", value=-64), r"constant 'fc\.weight' does not lie in"),
        (edited("constants", 0, "shape", value=[-1, 8]), r"'fc\.weight' has a shape that no tensor has"),
        (edited("constants", 0, "shape", value=[0, 1 << 70]), r"'fc\.weight' has a shape that no tensor has"),
        (edited("constants", 0, "shape", value=[1] * 99), r"'fc\.weight' has a shape that no tensor has"),
        (
            edited("constants", 0, "logical_shape", value=[-1]),
            "before packing has a shape that no tensor has",
        ),
        (edited("constants", 0, "bits", value=1), r"constant 'fc\.weight' has 1 bits of int8"),
        (edited("constants", 0, "bits", value=4), r"'fc\.bias' begins at byte 128 .*, 64 is wanted"),
        (edited("constants", 1, "bits", value=8), r"constant 'fc\.bias' has 8 bits of int32"),
        (edited("constants", 0, "dtype", value="object"), r"constant 'fc\.weight' has dtype 'object'"),
        (edited("constants", 0, "shape", value=[1]), r"'fc\.bias' begins at byte 128 .*, 64 is wanted"),
        (edited("constants", 1, "shape", value=[1]), r"constants\.bin has 192 bytes, its constants take 132"),
        (edited("constants", 1, "offset", value=0), r"'fc\.bias' begins at byte 0 .*, 128 is wanted"),
        (edited("constants", 0, "offset", value=1), r"'fc\.weight' begins at byte 1 .*, 0 is wanted"),
        (without("constants", 1), r"constants\.bin has 192 bytes, its constants take 128"),
        (edited("inputs", 0, "shape", value=[9, 9]), r"golden\.bin has 32 bytes, 81 are wanted for x uint8"),
        (edited("inputs", 0, "shape", value=[4]), r"golden\.bin has 32 bytes, 4 are wanted for x uint8\[4\]"),
        (edited("inputs", 0, "dtype", value="floatx"), "input 0 has dtype 'floatx'"),
        (edited("outputs", 0, "shape", value=[1 << 99]), "output 0 has a shape that no tensor has"),
        (edited("sites", 0, "dtype", value="O"), "site 'fc' has dtype 'O'"),
        (twice("inputs", 0), r"inputs \['x', 'x'\] do not differ in name"),
        (twice("outputs", 0), "2 golden outputs, 3 are wanted, one for each of the model's"),
        (twice("golden_inputs", 0), "2 golden inputs, 1 are wanted"),
        (edited("golden_inputs", 0, "exponent", value=10**30), "golden input 'x' has an exponent or offset"),
        (
            edited("golden_inputs", 0, "offset", value=-(10**400)),
            "golden input 'x' has an exponent or offset",
        ),
        (
            edited("description", "features", value=["avx1024"]),
            "needs the CPU feature avx1024, which this CPU",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(path, manifest, message):
    rewrite(path, manifest=manifest)
    with pytest.raises(ArtifactError, match=message):
        artifact.open_artifact(path)


@pytest.mark.parametrize("read", [artifact.open_artifact, artifact.read_manifest])
def test_compressed_constants_are_refused(path, read):
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    packed = container.deflate(contents["constants.bin"])
    manifest = json.loads(contents.pop(artifact.MANIFEST))
    manifest["members"][0] |= {"size": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    contents[artifact.MANIFEST] = json.dumps(manifest).encode()
    with path.open("wb") as file:
        container.write(file, [Member.deflated(n, d) for n, d in contents.items()])
    with pytest.raises(ArtifactError, match=r"constants\.bin is compressed, plain is wanted"):
        read(path)


def test_something_else_can_be_done_while_an_artifact_is_read(path):
    done = []
    opened = artifact.open_artifact(path, meanwhile=lambda: done.append(True))
    assert opened.built.library == ELF
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="no zip archive"):
        artifact.open_artifact(path, meanwhile=lambda: done.append(True))
    assert done == [True, True]


def test_a_golden_input_that_is_not_finite_is_refused(tmp_path):
    x = np.ones((4, 8), np.float32)
    built = dataclasses.replace(fake_built(), inputs=(TensorSpec("x", (4, 8), "float32"),))
    golden = dataclasses.replace(GOLDEN, inputs=(dataclasses.replace(sample_of(x), exponent=1000),))
    artifact.save(tmp_path / "m", built, tiny_program.description(), golden)
    with pytest.raises(ArtifactError, match="golden input 'x' is not finite"):
        artifact.open_artifact(tmp_path / "m")


def test_a_graph_stored_plain_is_read(path):
    graph = '{"a": "graph' + " " * 3_000_000 + '"}'
    built = dataclasses.replace(fake_built(), graph=graph)
    artifact.save(path, built, tiny_program.description(), GOLDEN)
    assert artifact.graph_text(artifact.open_artifact(path).built) == graph


def test_a_manifest_that_is_no_json_is_refused(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(artifact.MANIFEST)
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        artifact.open_artifact(path)


def test_code_for_another_machine_may_only_be_inspected(tmp_path):
    other = next(number for number in ELF_MACHINES if number != MACHINE)
    foreign = ELF[:18] + other.to_bytes(2, "little")
    artifact.save(tmp_path / "m", fake_built(foreign), tiny_program.description(), GOLDEN)
    name = ELF_MACHINES[other]
    with pytest.raises(ArtifactError, match=f"holds code for linux on {name}, this is linux on"):
        artifact.open_artifact(tmp_path / "m")
    assert artifact.read_manifest(tmp_path / "m").description == tiny_program.description()


def test_a_pinned_digest_must_match(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    artifact.open_artifact(path, sha256=digest.upper())
    with pytest.raises(ArtifactError, match=f"SHA-256 is {digest}, 00 is wanted"):
        artifact.open_artifact(path, sha256="00")


def test_deflating_is_by_the_standard(path):
    with zipfile.ZipFile(path) as file:
        text = file.read("graph.json")
    assert zlib.crc32(text) == zlib.crc32(fake_built().graph.encode())
