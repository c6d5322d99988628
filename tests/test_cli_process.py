"""The command line as a process of its own, on a real model: what a person at a shell sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny_transformer
from tvmq.cli import main

COMMAND = (sys.executable, "-m", "tvmq")
(X,) = tiny_transformer.inputs(1, seed=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its calibration data, an artifact and an input for it."""
    path = tmp_path_factory.mktemp("files")
    program = torch.export.export(tiny_transformer.transformer(), tiny_transformer.example())
    torch.export.save(program, path / "m.pt2")
    np.save(path / "data.npy", np.concatenate(tiny_transformer.inputs()))
    np.save(path / "x.npy", X)
    tiny_transformer.model().save(path / "m.tvmq")
    return path


def test_what_a_library_prints_is_no_part_of_the_result() -> None:
    code = "import os; from tvmq.cli_process import *; "
    code += "keep_stdout(); os.write(1, b'noise'); print('{}'); leave(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{}\n", "noise")


def tvmq(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = [str(argument) for argument in arguments]
    env = {**os.environ, **environment}
    return subprocess.run([*COMMAND, *given], capture_output=True, text=True, check=False, env=env)


def refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """Assert one sentence on stderr, its exit code, and no traceback."""
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert sentence.startswith("tvmq: ")
    assert message in sentence
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_compile_run_and_verify(folder: Path, tmp_path: Path):
    out, answer = tmp_path / "out.tvmq", tmp_path / "y.npy"
    done = tvmq("compile", folder / "m.pt2", "--calibration", folder / "data.npy", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "22 of 22 sites" in done.stdout
    assert tvmq("run", out, "-i", folder / "x.npy", "-o", answer).returncode == 0
    assert np.load(answer).tobytes() == tiny_transformer.model()(X).tobytes()
    done = tvmq("verify", out, "-i", folder / "x.npy")
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


@pytest.mark.slow
def test_running_needs_neither_torch_nor_the_compiler(folder: Path):
    code = (
        "import sys; from tvmq.cli import main\n"
        f"main(['run', {str(folder / 'm.tvmq')!r}, '-i', {str(folder / 'x.npy')!r}])\n"
        f"main(['bench', {str(folder / 'm.tvmq')!r}, '--repeat', '2'])\n"
        f"main(['verify', {str(folder / 'm.tvmq')!r}])\n"
        "sys.exit(', '.join({'torch', 'tvm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"no artifact",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: b"",
    ],
    ids=["truncated", "another file", "one bit", "empty"],
)
def test_a_damaged_artifact_is_refused(folder: Path, tmp_path: Path, change: Callable[[bytes], bytes]):
    path = tmp_path / "m.tvmq"
    path.write_bytes(change((folder / "m.tvmq").read_bytes()))
    refused(tvmq("run", path, "-i", folder / "x.npy", "-o", tmp_path / "y.npy"), 4, f"{path}: ")
    assert not (tmp_path / "y.npy").exists()


def test_what_cannot_be_compiled_leaves_nothing_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, data, out = folder / "m.pt2", folder / "data.npy", tmp_path / "out.tvmq"
    broken = {name: np.load(data) for name in ("nan", "constant", "shape")}
    broken["nan"][2, 3] = np.nan
    broken["constant"][:] = broken["constant"][0]
    broken["shape"] = broken["shape"][:, :5]
    (tmp_path / "data").mkdir()
    for name, array in broken.items():
        np.save(tmp_path / "data" / f"{name}.npy", array)
    (tmp_path / "data" / "m.pt2").write_bytes(model.read_bytes()[:1000])

    def attempt(code: int, message: str, *options: object, model: Path = model, data: Path = data) -> None:
        given = ["compile", model, "--calibration", data, "-o", out, *options]
        assert main([str(argument) for argument in given]) == code
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert sentence.startswith("tvmq: ")
        assert message in sentence

    attempt(2, "sample 2 holds NaN or Inf", data=tmp_path / "data" / "nan.npy")
    attempt(2, "identical", data=tmp_path / "data" / "constant.npy")
    attempt(2, "[N, 9, 64] is wanted", data=tmp_path / "data" / "shape.npy")
    attempt(2, "m.pt2: ", model=tmp_path / "data" / "m.pt2")
    attempt(2, "names no site of this model; near matches: head", "--ignore", "heat")
    attempt(3, "strict: 1 of 22", "--strict", "--ignore", "head")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_ctrl_c_ends_a_compile_with_a_sentence_and_without_files(folder: Path, tmp_path: Path):
    (tmp_path / "temporary").mkdir()
    out = tmp_path / "out.tvmq"
    command = [*COMMAND, "compile", str(folder / "m.pt2"), "--calibration", str(folder / "data.npy")]
    env = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "-o", str(out)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env
    ) as process:
        assert process.stderr is not None
        done = [process.stderr.readline() for _ in range(2)]  # two stages are done, the next is at work
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert [line.split()[0] for line in done] == ["start", "import"]
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1] == "tvmq: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert not out.exists()
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".so", ".o", ".tvmq")
    ]


def test_the_end_of_a_command_takes_nothing_apart(tmp_path: Path):
    code = (
        "import atexit\n"
        "from tvmq.cli import run_and_exit\n"
        "class Slow:\n"
        "    def __del__(self): print('taken apart', flush=True)\n"
        "slow = Slow()\n"
        "atexit.register(print, 'exit function')\n"
        "run_and_exit()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "no.tvmq"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert '"exit_code": 2' in done.stdout
    assert done.stdout.endswith("exit function\n")


def test_a_reader_that_is_gone_is_no_traceback():
    command = [*COMMAND, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
