"""scripts/gpu_bench.sh: its tables, what it carries to a GPU, and both halves on an emulated one."""

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

import tvmq
from tests import tiny_program
from tests.schedule.cuda.emulator import needs_emulator
from tvmq.bench import Timing
from tvmq.compiled import CompiledModel
from tvmq.errors import EnvironmentMismatchError
from tvmq.schedule.cuda.toolkit import require_cuda

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark, which import each other as scripts do."""
    for folder in ("shared", "bench", "arm", "gpu"):
        monkeypatch.syspath_prepend(ROOT / "scripts" / folder)
    import gpu_bench
    import gpu_models
    import gpu_peak
    import gpu_rows
    import gpu_runtime_files
    import turns

    return SimpleNamespace(
        bench=gpu_bench,
        models=gpu_models,
        peak=gpu_peak,
        rows=gpu_rows,
        files=gpu_runtime_files,
        turns=turns,
    )


def row(scripts: Any, engine: str, ms: float | None, **fields: Any) -> Any:
    timing = None if ms is None else Timing(ms, ms - 0.01, ms + 0.01, ms, 9)
    base = {"model": "deit_base", "batch": 8, "gpu": "H200", "rounds": 3, "macs": 10**9, "settings": {}}
    return scripts.rows.Row(**base | {"versions": {}, "engine": engine, "timing": timing} | fields)


def test_the_table_sets_tvmq_beside_each_rival_and_tells_what_is_missing(scripts: Any, tmp_path: Path):
    rows = [
        row(scripts, "tvmq", 2.0, percent_of_peak=41.0, exact="all 111 tensors", peak_gmacs=900_000.0),
        row(scripts, "torch.compile-float16", 3.0),
        row(scripts, "torch-float32", 9.0),
        row(scripts, "torch.compile-float32", None, reason="out of memory"),
    ]
    kept = scripts.rows.merged(tmp_path / "rows.json", rows[:1])
    kept = scripts.rows.merged(tmp_path / "rows.json", [*rows[1:], row(scripts, "tvmq", 2.5, batch=1)])
    text = scripts.rows.markdown(kept)
    assert (
        "| DeiT-B | 2.000 (1.990, 2.010) | 3.000 (2.990, 3.010) | not measured | 9.000 (8.990, 9.010) "
        in text
    )
    assert "| 41 % | 1.50 | 4.50 | all 111 tensors |" in text
    assert "DeiT-B, batch 8, torch.compile, float32: out of memory" in text
    assert "H200: peak 900 TMAC/s in int8, measured." in text
    assert text.index("H200, batch 1") < text.index("H200, batch 8")
    assert scripts.rows.markdown([]) == "Not measured; `bash scripts/gpu_bench.sh` does that."


def test_artifacts_are_carried_without_the_constants_that_they_share(scripts: Any, tmp_path: Path):
    model = CompiledModel(tiny_program.built(), tiny_program.description())
    constants = tmp_path / "constants.bin"
    constants.write_bytes(b"")
    whole = [tmp_path / f"{i}.tvmq" for i in range(2)]
    for path in whole:
        model.save(path)
    before = whole[0].read_bytes()
    scripts.models.split(whole[0], constants)
    shared = constants.stat().st_size
    scripts.models.split(whole[1], constants)
    assert constants.stat().st_size == shared > 0
    scripts.models.joined(whole[1], constants, tmp_path / "joined.tvmq")
    tvmq.load(tmp_path / "joined.tvmq").verify().require()
    assert (tmp_path / "joined.tvmq").stat().st_size == len(before)


@pytest.mark.slow
def test_what_is_carried_runs_artifacts_without_any_package_but_numpy(scripts: Any, tmp_path: Path):
    try:
        require_cuda("sm_90")
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    scripts.files.prepare(tmp_path / "site", "{}.{}".format(*sys.version_info))
    packages = Path(np.__file__).parents[1]
    (tmp_path / "numpy only").mkdir()
    for name in ("numpy", "numpy.libs"):
        (tmp_path / "numpy only" / name).symlink_to(packages / name)
    model = CompiledModel(tiny_program.built(), tiny_program.description())
    model.save(tmp_path / "m.tvmq")
    path = os.pathsep.join(map(str, (ROOT, tmp_path / "site", tmp_path / "numpy only")))
    code = (
        "import sys, tvmq; tvmq.load(sys.argv[1], threads=1).verify().require(); print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, tmp_path / "m.tvmq"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'rich'" not in done.stdout
    assert sum(file.stat().st_size for file in (tmp_path / "site").rglob("*") if file.is_file()) < 16e6


def test_the_peak_is_measured_by_the_widest_instructions(scripts: Any, tmp_path: Path):
    try:
        require_cuda("sm_90")
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    scripts.peak.prepare(tmp_path, "sm_90")
    scripts.peak.prepare(tmp_path, "sm_75")
    assert b"macs_of_groups" in (tmp_path / "peak.sm_90a.cubin").read_bytes()
    assert b"macs_of_warps" in (tmp_path / "peak.sm_75.cubin").read_bytes()
    text = require_cuda("sm_90").compiled(scripts.peak.SOURCE.read_text(), "sm_90a", "PTX").decode()
    assert text.count("wgmma.mma_async.sync.aligned.m64n256k32.s32.u8.s8") == 8


def test_torch_without_a_gpu_is_a_note(scripts: Any, tmp_path: Path):
    np.savez(tmp_path / "input.npz", x=np.zeros(1, np.float32))
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "scripts" / "shared")))
    given = (tmp_path / "input.npz", 1, {"PYTHONPATH": paths})
    jobs = {"torch": scripts.turns.Job(Path(sys.executable), "torch-float32", Path("small_vit"), *given)}
    failed: dict[str, Any] = {}
    with scripts.bench.ExitStack() as stack:
        assert scripts.bench.started(jobs, failed, stack) == {}
    assert str(failed["torch"]) == "RuntimeError: this torch sees no GPU"


@pytest.mark.slow
def test_all_that_needs_no_gpu(tmp_path: Path):
    paths = [ROOT, *(ROOT / "scripts" / name for name in ("shared", "bench", "arm"))]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu" / "gpu_bench.py", "--smoke"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "small_vit: " in done.stdout


@pytest.mark.slow
@needs_emulator
def test_both_halves_on_an_emulated_gpu(scripts: Any, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulated_gpu_bench", tmp_path],
        env=os.environ | {"TVM_THREAD_POOL_SPIN_COUNT": "0"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "small, batch 2 | " in done.stdout
    prepared = tmp_path / "prepared"
    times = json.loads((prepared / "tiles_us.json").read_text())
    assert len(times) == 2 * 11  # batches, tiles
    assert min(times.values()) > 0
    rows = scripts.rows.load_rows(prepared / "rows.json", scripts.rows.Row)
    found = {row.engine: row for row in rows}
    assert found["tvmq"].reason is None
    assert found["tvmq"].exact.startswith("all ")
    assert found["tvmq"].cosine > 0.9
    # an emulated GPU's times say nothing, not even that a call takes longer than its kernels
    assert min(found["tvmq"].timing.median_ms, found["tvmq"].call.median_ms) > 0
    assert found["tvmq"].percent_of_peak > 0
    assert {r.reason for e, r in found.items() if e != "tvmq"} == {"RuntimeError: this torch sees no GPU"}
