"""The commands that take an artifact, over a stub of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import tvmq
from tests import tiny_program
from tests.stub_model import StubModel
from tvmq import cli_artifact
from tvmq.artifact import save
from tvmq.cli import main
from tvmq.compiled import CompiledModel
from tvmq.golden import Golden, checksum, sample_of
from tvmq.images import Preprocessing
from tvmq.spec import TensorSpec


@pytest.fixture
def artifact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(vars(tvmq), "load", lambda path, threads=None: StubModel())
    return str(tmp_path / "m.tvmq")


def test_run_on_a_photo_writes_a_map(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg")
    assert main(["run", artifact, "--input", str(tmp_path / "photo.jpg"), "-o", str(tmp_path / "y.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "y.png")).shape == (8, 8)
    assert "written to" in capsys.readouterr().out


def test_run_on_an_array_reports_its_outputs(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    assert main(["run", artifact, "-i", str(tmp_path / "x.npy"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["outputs"]
    assert row == {
        "output": "y", "dtype": "float32", "shape": [1, 1, 8, 8], "min": 0.5, "mean": 0.5, "max": 0.5
    }  # fmt: skip
    assert main(["run", artifact, "-i", str(tmp_path / "x.txt")]) == 2
    assert "neither a photo nor an .npy" in capsys.readouterr().err


def test_a_photo_is_prepared_as_in_calibration(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "photo.png")
    read = ["run", artifact, "-i", str(tmp_path / "photo.png"), "--json"]
    seen: list[float] = []
    monkeypatch.setattr(StubModel, "__call__", lambda self, x: seen.append(float(x.max())) or x)
    assert main(read) == 0
    assert "ImageNet's mean and std are taken" in capsys.readouterr().err
    monkeypatch.setattr(StubModel, "preprocessing", Preprocessing((0.0,) * 3, (1.0,) * 3))
    assert main(read) == 0
    assert not capsys.readouterr().err
    assert main([*read, "--std", "2,2,2"]) == 0
    assert "with --mean 0,0,0 --std 2,2,2, those of the calibration were with --mean 0,0,0 --std 1,1,1" in (
        capsys.readouterr().err
    )
    assert seen[1:] == [pytest.approx(0.2), pytest.approx(0.1)]


def test_scores_of_classes_are_ranked():
    row = cli_artifact._described("y", np.array([[0.1, 0.9, 0.5]], np.float32))
    assert row["highest"] == [1, 2, 0]


def test_bench_shows_kernels_when_asked(artifact: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", artifact, "--threads", "1", "--repeat", "7", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["median_ms"], data["threads"], data["runs"]) == (1.5, 1, 7)
    assert main(["bench", artifact, "--profile"]) == 0
    assert "█" in capsys.readouterr().out


def test_verify_exits_6_where_a_bit_differs(
    artifact: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", artifact]) == 0
    assert "all equal" in capsys.readouterr().out
    monkeypatch.setattr(StubModel, "mismatches", ("fc", "output 0"))
    assert main(["verify", artifact, "--json"]) == 6
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert err.startswith("tvmq: fc: differs from the checksums")


def test_inspect_lists_sites_and_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    artifact = str(tmp_path / "m.tvmq")
    CompiledModel(tiny_program.built(), tiny_program.description(), samples=(tiny_program.an_input(),)).save(
        artifact
    )
    assert main(["inspect", artifact, "--scales", "--sites"]) == 0
    shown = capsys.readouterr().out
    assert "0.01 to 0.5" in shown
    assert "linear" in shown
    assert "made with" not in shown
    assert main(["inspect", artifact]) == 0
    shown = capsys.readouterr().out
    assert "made with" in shown
    assert "Recipe" in shown
    assert "recipe seed" not in shown
    assert main(["inspect", artifact, "--json"]) == 0
    (scale,) = json.loads(capsys.readouterr().out)["manifest"]["description"]["scales"]
    assert (scale["role"], scale["smallest"], scale["largest"]) == ("weight", 0.01, 0.5)


def test_inspect_tells_the_needs_of_a_gpu_from_those_of_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    artifact = str(tmp_path / "m.tvmq")
    x = tiny_program.an_input()
    golden = Golden((sample_of(x),), (checksum(x), checksum(x)), (checksum(x), checksum(x)))
    save(artifact, tiny_program.built(), tiny_program.description(("sm_87", "cuda_13", "asimd")), golden)
    assert main(["inspect", artifact]) == 0
    lines = [line.replace("│", "").split() for line in capsys.readouterr().out.splitlines()]
    assert ["CPU", "features", "asimd"] in lines
    assert ["GPU", "sm_87", "cuda_13"] in lines


def test_inspect_refuses_what_is_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "m.tvmq").write_bytes(b"nonsense")
    assert main(["inspect", str(tmp_path / "m.tvmq")]) == 4
    assert "m.tvmq: " in capsys.readouterr().err


def test_evaluate_compares_with_the_float_model(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Averages(StubModel):
        """What the float model below gives, but that blue is never the best."""

        preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3)

        outputs = (TensorSpec("y", (1, 3), "float32"),)

        def __call__(self, x: np.ndarray) -> np.ndarray:
            return x.mean((2, 3)) * np.float32([1, 1, 0])

    monkeypatch.setitem(vars(tvmq), "load", lambda path, threads=None: Averages())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), tmp_path / "float.onnx")
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        (tmp_path / "photos" / str(i)).mkdir(parents=True)
        Image.new("RGB", (16, 12), colour).save(tmp_path / "photos" / str(i) / "0.png")
    command = ["evaluate", artifact, "--images", str(tmp_path / "photos")]
    assert main([*command, "--float", str(tmp_path / "float.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["photos"], found["float_top1"]) == (3, 100)
    assert found["top1"] == pytest.approx(200 / 3)
    assert found["comparison"]["drop"] == pytest.approx(100 / 3)
    assert main(command) == 0
    assert "66.67 %" in capsys.readouterr().out
