"""scripts/bench: the rows, their tables, and the whole path with one small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from rich.progress import Progress

from tvmq.bench import Timing
from tvmq.environment import allowed_cpus
from tvmq.errors import UsageError

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "bench"
SHARED = ROOT / "scripts" / "shared"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark, which import each other as scripts do."""
    monkeypatch.syspath_prepend(SHARED)
    monkeypatch.syspath_prepend(SCRIPTS)
    import models
    import parts
    import prepare
    import readme
    import rows
    import run
    import turns

    return SimpleNamespace(
        models=models, parts=parts, prepare=prepare, readme=readme, rows=rows, run=run, turns=turns
    )


def test_engines_start_as_installed_ones_do(scripts: Any, monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.setenv(name, "1")
    found = scripts.parts.environment()
    assert not {"OMP_NUM_THREADS", "TVM_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"} & set(found)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(SHARED)]


def row(scripts: Any, engine: str, ms: float | None, threads: int = 1, model: str = "deit_tiny") -> Any:
    return scripts.rows.Row(
        model=model,
        threads=threads,
        engine=engine,
        integer=engine in ("tvmq", "openvino-int8", "onnxruntime-int8"),
        reason=None if ms else "out of memory",
        timing=Timing(ms, ms, ms, ms, 9) if ms else None,
        rounds=3,
        macs=1_000_000_000,
        peak_instructions="AVX2",
        peak_gmacs=100.0,
        fp32_peak_gmacs=50.0,
        floor_ms=10.0 / threads,
        percent_of_peak=1000.0 / threads / ms if ms else None,
        file_mb=1.5,
        settings={},
        versions={engine: "1"},
        cpu="a CPU",
    )


def test_ratios_are_to_the_best_rival_of_each_kind(scripts: Any):
    measured = {
        "tvmq": 10.0,
        "openvino-int8": 15.0,
        "onnxruntime-int8": 30.0,
        "openvino": None,
        "onnxruntime": 40.0,
    }
    found = scripts.rows.compared([row(scripts, engine, ms) for engine, ms in measured.items()])
    ratios = {r.engine: (r.ratio_to_best_int8, r.ratio_to_best_float) for r in found}
    assert ratios["tvmq"] == (1.5, 4.0)
    assert ratios["onnxruntime-int8"] == (0.5, pytest.approx(4 / 3))
    assert ratios["openvino"] == (None, None)


def test_a_later_run_replaces_its_rows_and_keeps_the_others(scripts: Any, tmp_path: Path):
    path = tmp_path / "results.json"
    scripts.rows.save(path, [row(scripts, "tvmq", 10.0, threads=2), row(scripts, "tvmq", 20.0)])
    scripts.rows.save(
        path, [row(scripts, "tvmq", 5.0, threads=2), row(scripts, "tvmq", 7.0, model="resnet50")]
    )
    found = [(r.model, r.threads, r.timing.median_ms) for r in scripts.rows.load(path)]
    assert found == [("deit_tiny", 1, 20.0), ("deit_tiny", 2, 5.0), ("resnet50", 1, 7.0)]


def test_the_tables_tell_what_failed_and_why(scripts: Any):
    found = scripts.rows.compared([row(scripts, "tvmq", 12.5), row(scripts, "openvino-int8", None)])
    text = scripts.rows.markdown(found)
    assert "| DeiT-Ti | 10.00 | 12.50 | failed | 80 % | - | - |" in text
    assert "| DeiT-Ti | 1.5 / 1.5 | - / - | - / - |" in text
    assert "DeiT-Ti, OpenVINO int8, 1 thread: out of memory" in text


def test_a_script_writes_between_its_own_marks_only(scripts: Any, tmp_path: Path):
    path = tmp_path / "README.md"
    mark, end = "<!-- measured by {} -->\n", "<!-- end of measured -->\n"
    path.write_text(f"a\n{mark.format('x')}old\n{end}b\n{mark.format('y')}kept\n{end}c\n")
    scripts.readme.put(path, "x", "new")
    assert path.read_text() == f"a\n{mark.format('x')}new\n{end}b\n{mark.format('y')}kept\n{end}c\n"


def test_a_write_that_fails_leaves_the_file_as_it_was(scripts: Any, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        scripts.readme.write_whole(path, "half of it\ud800")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "before")]


@pytest.mark.parametrize("text", ['[{"model": "de', "{}", "[1]"])
def test_results_that_were_cut_off_are_refused_before_anything_is_measured(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"results\.json"):
        scripts.rows.load(path)
    monkeypatch.setattr(scripts.run, "SMOKE_RESULTS", path)
    monkeypatch.setattr(scripts.run.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match=r"bench: .*results\.json"):
        scripts.run.main(["--smoke"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "1,9999"], "--threads 1,9999 given, 1 to"),
        (["--threads", "0"], "--threads 0 given, 1 to"),
        (["--threads", "1,x"], "--threads 1,x given, 1 to"),
        (["--rounds", "0"], "--rounds 0 given, at least 1 is wanted"),
    ],
)
def test_numbers_that_cannot_be_measured_are_refused(
    scripts: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    with pytest.raises(SystemExit):
        scripts.run.parse(arguments)
    assert said in capsys.readouterr().err


def test_without_arguments_all_models_run_on_one_and_two_threads(scripts: Any):
    plan = scripts.run.parse([])
    assert (plan.rounds, plan.models) == (scripts.run.ROUNDS, tuple(scripts.models.MODELS))
    assert plan.threads == (1, 2)[: len(allowed_cpus())]


class Unexportable:
    """A store whose models cannot be exported."""

    def __init__(self, scripts: Any) -> None:
        self.failed = scripts.parts.NotMeasuredError("no weights")

    def python(self, engine: str) -> Path:
        return Path(sys.executable)

    def source(self, model: str) -> Path:
        raise self.failed


def test_a_model_that_cannot_be_exported_is_a_note_and_ends_nothing(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    peak = scripts.prepare.Peak("AVX2", 100.0)
    monkeypatch.setattr(scripts.run, "peaks", lambda: {"int8": peak, "fp32": peak})
    engines, path = ("tvmq", "onnxruntime"), tmp_path / "results.json"
    plan = scripts.run.Plan(("deit_tiny",), (1,), engines, 1, 1, Unexportable(scripts), path)
    with Progress(disable=True) as progress:
        scripts.run.measure(plan, scripts.run.prepare(plan, progress), progress)
    found = scripts.rows.load(path)
    assert [(r.engine, r.reason, r.macs) for r in found] == [(e, "no weights", None) for e in engines]
    assert "| DeiT-Ti | - | failed | failed | - | - | - |" in scripts.rows.markdown(found)


def test_rivals_are_calibrated_with_whole_batches(scripts: Any, tmp_path: Path):
    import quantize

    model = scripts.models.MODELS["mobilenetv2_100_8"]
    pixels = model.samples(3 * model.batch)["pixels"]
    np.savez(tmp_path / "input.npz", pixels=pixels[: model.batch])
    np.savez(tmp_path / "calibration.npz", pixels=pixels[model.batch :])
    seen = [sample["pixels"] for sample in quantize.samples(tmp_path)]
    assert [len(batch) for batch in seen] == [8, 8]
    np.testing.assert_array_equal(np.concatenate(seen), pixels[8:])


def test_multiplications_are_counted_from_the_graph(scripts: Any):
    weights = [("w", (6, 2, 3, 3)), ("m", (10, 4)), ("g", (4, 5))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2, strides=[2, 2]),  # [1, 4, 9, 9] -> [1, 6, 4, 4]
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Slice", ["f", "begin", "end"], ["s"]),
        helper.make_node("Gemm", ["s", "m"], ["d"], transA=0),
        helper.make_node("MatMul", ["d", "g"], ["y"]),
    ]
    floats = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel())
        for name, shape in weights
    ]
    ints = [
        helper.make_tensor(n, TensorProto.INT64, (2,), v) for n, v in (("begin", [0, 0]), ("end", [1, 10]))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 9, 9))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("c", "y")],
        [*floats, *ints],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = scripts.models.count_macs(model, {"x": np.zeros((1, 4, 9, 9), np.float32)})
    assert found == 6 * 4 * 4 * 2 * 9 + 10 * 4 + 4 * 5


def test_what_depends_on_shapes_only_is_folded(scripts: Any):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["width"]),
        helper.make_node("Concat", ["width", "one"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    ints = [
        helper.make_tensor(name, TensorProto.INT64, (1,), [value])
        for name, value in (("last", 1), ("one", 1))
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 4)), ("y", (4, 1))))
    graph = helper.make_graph(nodes, "g", [x], [y], ints)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = {"x": np.arange(4, dtype=np.float32)[None]}
    folded = scripts.models.fold(model, inputs)
    assert [node.op_type for node in folded.graph.node] == ["Reshape"]
    assert [tensor.name for tensor in folded.graph.initializer] == ["wanted"]
    (found,) = onnxruntime.InferenceSession(folded.SerializeToString()).run(None, inputs)
    assert found.tolist() == [[0], [1], [2], [3]]
    again = folded.SerializeToString()
    assert scripts.models.fold(folded, inputs).SerializeToString() == again


def test_an_engine_that_cannot_start_gives_its_reason(scripts: Any, tmp_path: Path):
    np.savez(tmp_path / "input.npz", x=np.zeros(1, np.float32))
    job = scripts.turns.Job(
        Path(sys.executable), "onnxruntime", tmp_path / "no.onnx", tmp_path / "input.npz", 1
    )
    found = scripts.turns.measure({"bad": job}, rounds=1, starts=1, done=lambda: None)
    assert isinstance(found["bad"], scripts.parts.NotMeasuredError)
    assert "no.onnx" in str(found["bad"])


def test_a_process_that_closes_its_output_and_stays_is_a_note(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "worker.py").write_text("import os, time\nos.close(1)\ntime.sleep(60)\n")
    monkeypatch.setattr(scripts.turns, "HERE", tmp_path)
    monkeypatch.setattr(scripts.turns, "END_S", 0.2)
    job = scripts.turns.Job(Path(sys.executable), "tvmq", tmp_path / "m", tmp_path / "i", 1)
    found = scripts.turns.measure({"stuck": job}, rounds=1, starts=1, done=lambda: None)
    assert "it did not end within" in str(found["stuck"])


@pytest.mark.slow
def test_the_whole_path_with_one_small_model(scripts: Any):
    results = ROOT / "out" / "bench" / "smoke.json"
    results.unlink(missing_ok=True)
    readme = (ROOT / "README.md").read_bytes()
    done = subprocess.run(
        [sys.executable, SCRIPTS / "run.py", "--smoke"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SHARED}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = scripts.rows.load(results)
    engines = {"tvmq", "onnxruntime-int8", "onnxruntime"}
    assert {r.engine for r in rows if r.threads == 1} == engines
    for r in rows:
        assert r.reason is None
        assert r.cosine > 0.9
        assert 0 < r.timing.min_ms <= r.timing.median_ms
        assert 0 < r.floor_ms < r.timing.min_ms
        assert min(r.peak_memory_mb, r.file_mb, r.cold_start_ms) > 0
    assert "ViT of two blocks" in done.stdout
    assert json.loads(results.read_text())[0]["versions"]
    assert (ROOT / "README.md").read_bytes() == readme


def test_a_measured_profile_has_the_machines_numbers_and_parses(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
):
    import machine

    from tvmq.target import load_profile, parse_profile

    monkeypatch.setattr(machine, "cache_bytes", lambda level: {2: 1 << 20}.get(level))
    memory = {"clock_ghz": 2.0, "dram_gb_per_s": 20.0, "l1_gb_per_s": 200.0}
    peaks = {
        kind: {"gmacs": gmacs, "instructions": "some"} for kind, gmacs in (("int8", 128.0), ("fp32", 32.0))
    }
    base = load_profile("x86_avx512_vnni")
    made = machine.with_numbers(base, "mine", memory, peaks, "measured today")
    assert parse_profile(made.to_toml(), "mine.toml") == made
    *integer, floating = (kernel.macs_per_cycle for kernel in made.kernels)
    assert (set(integer), floating) == ({64.0}, 16.0)
    assert (made.machine.l2_bytes, made.machine.l3_bytes, made.tvm_target) == (1 << 20, None, base.tvm_target)
