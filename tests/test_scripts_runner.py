"""tvmq-run, built here against the libraries of the installed TVM, does what `tvmq run` and `verify` do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from tests import tiny_program
from tvmq import artifact
from tvmq.compiled import CompiledModel
from tvmq.errors import EnvironmentMismatchError, UsageError
from tvmq.golden import Golden, checksum, sample_of
from tvmq.linker import require_linker
from tvmq.runtime import runtime_library

ROOT = Path(__file__).parents[1]
X = tiny_program.an_input()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    program = tmp_path_factory.mktemp("runner") / "tvmq-run"
    ffi = Path(tvm_ffi.__file__).parent
    folders = [str(ffi / "lib"), str(runtime_library().parent)]
    paths = [word for folder in folders for word in ("-L", folder, f"-Wl,-rpath,{folder}")]
    libraries = ["-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime"]
    try:
        compiler = require_linker()
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    if "ziglang" in compiler.command:
        pytest.skip("no C++ compiler for this machine")
    source = ["-std=c++17", "-w", "-I", str(ffi / "include"), str(ROOT / "runner" / "main.cpp")]
    compiler.run([*source, *paths, *libraries, "-o", str(program)])

    def ran(*arguments: object) -> Any:
        done = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
        )
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
        done = run(path, "-i", tmp_path / name, "-o", tmp_path / "y.npy", "--threads", 1, "--repeat", 3)
        assert done.code == 0, done.err
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
    data = bytearray(path.read_bytes())
    data[data.find(tiny_program.weights()[0].tobytes())] ^= 1
    path.write_bytes(data)
    done = run(path)
    assert (done.code, "constants.bin has another SHA-256" in done.err) == (2, True)


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


def test_no_program_is_built_for_models_on_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("shared", "bench", "arm"):
        monkeypatch.syspath_prepend(ROOT / "scripts" / folder)
    import runner

    with pytest.raises(UsageError, match="jetson-orin computes on an NVIDIA GPU"):
        runner.build("jetson-orin", tmp_path)
