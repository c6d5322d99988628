"""The command line over a stub of what it drives: outputs, exit codes, one sentence per failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import tvmq
from tests.stub_model import StubModel
from tvmq import cli_devices
from tvmq.calibrate.observers import OBSERVERS
from tvmq.cli import Observer, main
from tvmq.errors import ArtifactError, LostBoardWarning, UnsupportedModelError
from tvmq.tune.results import TuningInterrupted


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    for i in range(3):
        Image.new("RGB", (16, 12), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path / "model.onnx"


@pytest.fixture
def compile_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def compile_stub(model: Any, *, calibration: Any, progress: Any, **options: Any) -> StubModel:
        progress("calibrate", 0, len(calibration))
        calls.append({"model": model, "batches": list(calibration), **options})
        progress("calibrate", len(calibration), len(calibration))
        return StubModel()

    monkeypatch.setitem(vars(tvmq), "compile", compile_stub)
    return calls


def test_compile_hands_everything_on_and_writes_beside_the_model(
    model_file: Path, compile_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    arguments = (
        f"compile {model_file} --calibration {model_file.parent} --target x86_avx2 --samples 2 --ignore head"
    )
    assert main([*arguments.split(), "--ignore", "blocks.0.*", "--requantize", "fixed_point", "--json"]) == 0
    out, err = capsys.readouterr()
    (call,) = compile_calls
    assert [batch[0].shape for batch in call.pop("batches")] == [(1, 3, 8, 8)] * 2
    assert call.pop("example_inputs")["x"].shape == (1, 3, 8, 8)
    assert call == {
        "model": model_file, "target": "x86_avx2", "bits": "8", "ignored": ("head", "blocks.0.*"),
        "requantize": "fixed_point", "observer": "mse", "preset": "default", "strict": False, "seed": 0,
    }  # fmt: skip
    summary = json.loads(out)
    assert summary["artifact"] == str(model_file.with_suffix(".tvmq"))
    assert (summary["bytes"], summary["coverage"]["sites_integer"]) == (8, 1)
    assert list(summary["seconds"]) == ["start", "calibrate", "save"]
    assert [line.split()[0] for line in err.splitlines()] == ["start", "tvmq:", "calibrate", "save"]
    assert "model.onnx leaves the batch open, so it is compiled for 1; --batch is another" in err


def test_a_batch_is_chosen_where_the_model_leaves_it_open(
    model_file: Path, compile_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    command = ["compile", str(model_file), "--calibration", str(model_file.parent), "--json"]
    assert main([*command, "--batch", "2"]) == 0
    (call,) = compile_calls
    assert call["example_inputs"]["x"].shape == (2, 3, 8, 8)
    assert [batch[0].shape for batch in call["batches"]] == [(2, 3, 8, 8)]
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["calibration_samples"], summary["calibration_samples_left_out"]) == (2, 1)
    assert "leaves the batch open" not in err
    assert main([*command, "--batch", "4"]) == 2
    assert "3 samples do not fill one batch of 4" in capsys.readouterr().err


def test_compile_without_json_prints_tables(
    model_file: Path, compile_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    assert main(["compile", str(model_file), "--calibration", f"{model_file.parent}/*.png"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 sites and 100.0 % of the multiplications are integer." in out
    assert "calibrated on" in out


def test_tune_is_compile_with_a_search(
    model_file: Path, compile_calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    search = "--trials 9 --minutes 2.5 --database d.jsonl --device tracker:desk/rpi4"
    assert main(["tune", str(model_file), "--calibration", str(model_file.parent), *search.split()]) == 0
    (call,) = compile_calls
    assert call["tune"] == tvmq.Tune(trials=9, minutes=2.5, database=Path("d.jsonl"))
    assert call["device"] == "tracker:desk/rpi4"
    assert "1 of 2 kernels were measured; together they take 180.0 us, by default 200.0 us." in (
        " ".join(capsys.readouterr().out.split())
    )
    assert main(["tune", str(model_file), "--calibration", str(model_file.parent), "--minutes", "-1"]) == 2
    assert "minutes=-1.0, a number over 0" in capsys.readouterr().err


def test_ctrl_c_during_tuning_says_what_is_kept(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*args: Any, **options: Any) -> None:
        raise TuningInterrupted("interrupted; the 5 trials so far are kept in d.jsonl")

    monkeypatch.setitem(vars(tvmq), "compile", interrupted)
    assert main(["tune", str(model_file), "--calibration", str(model_file.parent)]) == 130
    assert capsys.readouterr().err.endswith("\ntvmq: interrupted; the 5 trials so far are kept in d.jsonl\n")
    assert not model_file.with_suffix(".tvmq").exists()


def test_ctrl_c_inside_tvm_is_no_bug(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*args: Any, **options: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError from None  # as TVM does when a pass is interrupted

    monkeypatch.setitem(vars(tvmq), "compile", interrupted)
    assert main(["compile", str(model_file), "--calibration", str(model_file.parent)]) == 130
    assert capsys.readouterr().err.endswith("\ntvmq: interrupted; nothing was written\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_compile_leaves_nothing_behind(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(tvmq), "compile", interrupted)
    before = set(model_file.parent.iterdir())
    assert main(["compile", str(model_file), "--calibration", str(model_file.parent)]) == 130
    assert capsys.readouterr().err.endswith("\ntvmq: interrupted; nothing was written\n")
    assert main(["tune", str(model_file), "--calibration", str(model_file.parent)]) == 130
    assert "no artifact was written, what was measured is kept" in capsys.readouterr().err
    log = ["--bits", "auto", "--search-log", "plans.jsonl"]
    assert main(["compile", str(model_file), "--calibration", str(model_file.parent), *log]) == 130
    assert "what was evaluated is in the search log" in capsys.readouterr().err
    assert set(model_file.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--target nonsense", "unknown target 'nonsense'; known targets: a100, "),
        ("-o absent/m.tvmq", "folder 'absent' does not exist; create it first"),
        ("--mean 1,2", "one positive std per mean is wanted"),
        ("--mean blue", "--mean: 'blue' is not a list of numbers"),
        ("--bits w9a8", "bits='w9a8': no widths are called that; pass 3 to 8"),
        ("--bits w4a8 --max-size-mb 3", "--max-size-mb: limits what --bits auto chooses; add that"),
        ("--requantize dyadic", "Invalid value for '--requantize': 'dyadic' is not one of 'pot', "),
        ("--no-such-option", "No such option: --no-such-option. See `tvmq compile --help`."),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    model_file: Path,
    compile_calls: list[Any],
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
):
    given = ["compile", str(model_file), "--calibration", str(model_file.parent), *arguments.split()]
    assert main(given) == 2
    err = capsys.readouterr().err
    assert err.startswith("tvmq: ")
    assert message in err
    assert not compile_calls


def test_a_warning_is_a_sentence_without_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def devices(*_: Any, **__: Any) -> int:
        warnings.warn(LostBoardWarning("device: a board was lost"), stacklevel=1)
        warnings.warn("another library's", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli_devices, "devices", devices)
    with pytest.warns(FutureWarning, match="another library's"):
        assert main(["devices"]) == 0
    assert capsys.readouterr().err == "tvmq: warning: device: a board was lost\n"


def test_observers_of_the_command_line_and_of_the_readme_are_those_of_the_table():
    assert sorted(Observer) == sorted(OBSERVERS)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| `observer`"))
    assert [name for name in OBSERVERS if f'`"{name}"`' not in row] == []


def test_a_missing_model_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", str(tmp_path / "no.onnx"), "--calibration", str(tmp_path)]) == 2
    assert "no.onnx: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.jpg"])
def test_a_missing_input_is_no_such_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(vars(tvmq), "load", lambda path, threads=None: StubModel())
    assert main(["run", "m.tvmq", "-i", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith(f"tvmq: {tmp_path / name}: no such file; check the path\n")


@pytest.mark.parametrize("command", ["run", "bench", "verify", "inspect"])
def test_a_missing_artifact_has_the_exit_code_of_a_missing_model(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    more = ["-i", str(tmp_path / "x.npy")] if command == "run" else []
    assert main([command, str(tmp_path / "no.tvmq"), *more]) == 2
    assert "no.tvmq: no such file" in capsys.readouterr().err


def test_a_compile_shows_that_it_began_before_anything_heavy_is_imported(tmp_path: Path):
    (tmp_path / "m.onnx").touch()
    code = (
        "import os, sys\n"
        "class Errors:\n"
        "    def write(self, text):\n"
        "        print(repr(text), *({'tvm', 'tvm_ffi', 'torch', 'onnx'} & set(sys.modules)), flush=True)\n"
        "        os._exit(0)\n"
        "    def flush(self): pass\n"
        "from tvmq.cli import main\n"
        "sys.stderr = Errors()\n"
        f"main(['compile', {str(tmp_path / 'm.onnx')!r}, '--calibration', {str(tmp_path)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "'start'"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            UnsupportedModelError("head: op Foo is not supported; do without"),
            3,
            "head: op Foo is not supported",
        ),
        (ArtifactError("m.tvmq: damaged; copy it again"), 4, "m.tvmq: damaged; copy it again"),
        (PermissionError(13, "Permission denied", "m.tvmq"), 2, "m.tvmq: Permission denied"),
        (ZeroDivisionError("by zero"), 70, "internal error, ZeroDivisionError: by zero; report it"),
    ],
)
def test_every_failure_is_one_sentence_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    message: str,
):
    def fail(path: Path, threads: int | None = None) -> None:
        raise error

    monkeypatch.setitem(vars(tvmq), "load", fail)
    assert main(["bench", "m.tvmq", "--json"]) == code
    out, err = capsys.readouterr()
    assert err.startswith("tvmq: ")
    assert err.count("\n") == 1
    assert message in err
    told = json.loads(out)["error"]
    assert told["exit_code"] == code
    assert told["message"] in err


def test_targets_and_doctor_speak_json_and_tables(capsys: pytest.CaptureFixture[str]):
    assert main(["targets", "--json"]) == 0
    assert {"x86_avx2", "arm_neon"} <= {row["name"] for row in json.loads(capsys.readouterr().out)["targets"]}
    assert main(["targets"]) == 0
    assert "x86_avx512_vbmi" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["can_run"] is True
    assert main(["doctor"]) == 0
    assert "linker" in capsys.readouterr().out


def test_doctor_exits_5_where_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("tvmq.doctor.sys", SimpleNamespace(version_info=(3, 9, 0)))
    assert main(["doctor"]) == 5
    assert "use Python 3.11" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "compile" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == tvmq.__version__


def test_help_is_instant_because_it_imports_nothing_heavy():
    code = (
        "import sys; from tvmq.cli import main; main(['--help']); main(['compile', '--help']);"
        "heavy = {'torch', 'tvm', 'tvm_ffi', 'onnx', 'scipy', 'PIL', 'numpy'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 2.0  # 0.2 s on an idle machine; this one may be busy


def test_budgets_recipes_and_pictures_are_handed_on(
    model_file: Path, compile_calls: list[dict[str, Any]], tmp_path: Path
):
    arguments = f"compile {model_file} --calibration {model_file.parent} --bits auto --max-size-mb 12.5"
    more = f"--max-drop 0.5 --minutes 3 --search-log {tmp_path}/log --min-coverage 0.9"
    assert main([*arguments.split(), *more.split(), "--picture", f"{tmp_path}/p.svg"]) == 0
    call = compile_calls[0]
    assert (call["bits"], call["max_size_mb"], call["max_drop"], call["minutes"]) == ("auto", 12.5, 0.5, 3)
    assert call["min_coverage"] == 0.9
    assert call["budget"].log == tmp_path / "log"
    assert "max_latency_ms" not in call
    recipe = f"compile {model_file} --calibration {model_file.parent} --recipe {tmp_path}/r.toml"
    assert main(recipe.split()) == 0
    assert compile_calls[1]["recipe"] == tmp_path / "r.toml"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--picture p.gif --bits auto", "p.gif: a picture ends in .png, .svg or .html"),
        ("--picture p.png", "shows how bits were chosen; add --bits auto"),
        ("--save-recipe none/r.toml", "folder 'none' does not exist; create it first"),
    ],
)
def test_what_could_not_be_written_is_said_before_any_work(
    model_file: Path,
    compile_calls: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    more: str,
    said: str,
):
    assert main(f"compile {model_file} --calibration {model_file.parent} {more}".split()) == 2
    assert said in capsys.readouterr().err
    assert compile_calls == []
