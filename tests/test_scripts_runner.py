"""tvmq-run, built here against the libraries of the installed TVM, does what `tvmq run` and `verify` do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from tests import tiny_program
from tvmq import artifact, container
from tvmq.compiled import CompiledModel
from tvmq.errors import EnvironmentMismatchError, UsageError
from tvmq.golden import Golden, checksum, sample_of

ROOT = Path(__file__).parents[1]
X = tiny_program.an_input()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("shared", "arm"):
            patch.syspath_prepend(ROOT / "scripts" / folder)
        import runner

        yield runner


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scripts: Any) -> Callable[..., Any]:
    site = Path(tvm_ffi.__file__).parents[1]
    try:
        program = scripts.program(platform.machine(), tmp_path_factory.mktemp("runner"), site)
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))

    def ran(*arguments: object, **more: Any) -> Any:
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True, text=True, timeout=120, check=False, **more,
        )  # fmt: skip
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return ran


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.tvmq"
    CompiledModel(tiny_program.built(), tiny_program.description()).save(path)
    return path


def test_outputs_are_those_of_the_model(run: Callable[..., Any], path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.raw").write_bytes(X.tobytes())
    for name in ("x.npy", "x.raw"):
        outputs = ("-o", tmp_path / "y.npy", "-o", tmp_path / "z.npy")
        done = run(path, "-i", tmp_path / name, *outputs, "--threads", 1, "--repeat", 3)
        assert done.code == 0, done.err
        np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), X.reshape(-1))
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tiny_program.expected(X))
        assert f"{tiny_program.expected(X).max()}" in done.out
        assert "median of 3" in done.out


def test_the_golden_input_verifies(run: Callable[..., Any], path: Path) -> None:
    done = run(path, "--verify", "--threads", 1)
    assert (done.code, done.out.splitlines()[0]) == (0, "all equal: 4 tensors, bit for bit")


def test_every_sample_of_a_batch_is_computed(run: Callable[..., Any], tmp_path: Path) -> None:
    built = tiny_program.built().for_samples(3)
    CompiledModel(built, tiny_program.description()).save(tmp_path / "m.tvmq")
    x = np.concatenate([tiny_program.an_input(seed) for seed in range(3)])
    np.save(tmp_path / "x.npy", x)
    done = run(
        tmp_path / "m.tvmq", "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--verify", "--threads", 1
    )
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tiny_program.expected(x))


def test_damage_and_wrong_inputs_are_refused(run: Callable[..., Any], path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.astype("float32"))
    assert "the input x wants uint8 (4, 8)" in run(path, "-i", tmp_path / "x.npy").err
    assert "unknown argument '--fast'" in run(path, "--fast").err
    done = run(path, "--threads", "1x")
    assert (done.code, "'1x' given, a whole number" in done.err) == (2, True)
    assert "3 outputs named, the model has 2" in run(path, *("-o", tmp_path / "y") * 3).err
    data = bytearray(path.read_bytes())
    data[data.find(tiny_program.weights()[0].tobytes())] ^= 1
    path.write_bytes(data)
    done = run(path)
    assert (done.code, "constants.bin has another SHA-256" in done.err) == (4, True)


def test_code_that_the_cpu_cannot_run_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    golden = Golden((sample_of(X),), (checksum(X), checksum(X)), (checksum(X), checksum(X)))
    needy = tiny_program.description(("no_such_feature",))
    artifact.save(tmp_path / "f", tiny_program.built(), needy, golden)
    assert "needs the CPU feature no_such_feature, which this CPU lacks" in run(tmp_path / "f").err
    of_gpu = tiny_program.description(("sm_87", "cuda_13"))
    artifact.save(tmp_path / "g", tiny_program.built(), of_gpu, golden)
    assert "its kernels are for an NVIDIA GPU" in run(tmp_path / "g").err
    foreign = b"\x7fELF" + bytes(14) + (40).to_bytes(2, "little") + bytes(8)
    artifact.save(tmp_path / "m", tiny_program.built(foreign), tiny_program.description(), golden)
    assert "holds code for x86_64-linux-gnu, this is linux on" in run(tmp_path / "m").err


def test_no_program_is_built_for_models_on_gpus(scripts: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jetson-orin computes on an NVIDIA GPU"):
        scripts.build("jetson-orin", tmp_path)


def test_it_takes_the_cpus_that_it_may_use(run: Callable[..., Any], path: Path) -> None:
    one = {min(os.sched_getaffinity(0))}
    done = run(path, "--verify", preexec_fn=lambda: os.sched_setaffinity(0, one))
    assert (done.code, done.err) == (0, "")
    done = run(path, "--threads", 2, preexec_fn=lambda: os.sched_setaffinity(0, one))
    assert (done.code, done.err) == (2, "tvmq-run: --threads: this process has 1 CPUs\n")


def test_the_link_to_the_library_is_where_tmpdir_says(
    run: Callable[..., Any], path: Path, tmp_path: Path
) -> None:
    done = run(path, env=os.environ | {"TMPDIR": str(tmp_path / "absent")})
    assert (done.code, "set TMPDIR to a folder" in done.err) == (5, True)
    assert run(path, env=os.environ | {"TMPDIR": str(tmp_path)}).code == 0


def changed(path: Path, change: Callable[[Any], None], *, sum_too: bool = True) -> None:
    """Write an artifact whose manifest was changed, with or without its checksum."""
    golden = Golden((sample_of(X),), (checksum(X), checksum(X)), (checksum(X), checksum(X)))
    _, members = artifact.pack(tiny_program.built(), tiny_program.description(), golden)
    [*others, manifest] = members
    data = json.loads(container.inflate(manifest.data))
    change(data)
    text = json.dumps(data).encode()
    crc = zlib.crc32(text) if sum_too else manifest.crc
    packed = container.Member(manifest.name, container.deflate(text), len(text), container.DEFLATED, crc)
    with path.open("wb") as file:
        container.write(file, [*others, packed])


def test_a_manifest_that_is_damaged_or_of_another_tvm_is_refused(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    def moved(data: Any) -> None:
        data["constants"][0]["offset"] = 64

    changed(tmp_path / "m", moved, sum_too=False)
    done = run(tmp_path / "m")
    assert (done.code, "has another CRC-32" in done.err) == (4, True)
    changed(tmp_path / "m", lambda data: data.update(tvm="0.26.0"))
    done = run(tmp_path / "m")
    assert (done.code, "made with apache-tvm 0.26.0" in done.err) == (4, True)


@pytest.mark.parametrize("field", ["shape", "dtype", "all"])
def test_outputs_that_are_not_the_manifests_are_refused(
    run: Callable[..., Any], tmp_path: Path, field: str
) -> None:
    def other(data: Any) -> None:
        if field == "all":
            del data["outputs"][1]
        else:
            data["outputs"][0][field] = {"shape": [4, 1 << 20], "dtype": "int64"}[field]

    changed(tmp_path / "m", other)
    done = run(tmp_path / "m", "-o", tmp_path / "y.npy")
    assert (done.code, "gives other tensors than its manifest says" in done.err) == (4, True)


def test_a_cross_compiler_that_is_half_installed_is_said(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aarch64-linux-gnu-gcc").write_text("")
    (tmp_path / "aarch64-linux-gnu-gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "aarch64-linux-gnu.2.28" in scripts.compiler("aarch64").command
    monkeypatch.setattr(scripts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMismatchError, match=r"no C\+\+ compiler for aarch64-linux-gnu found"):
        scripts.compiler("aarch64")
