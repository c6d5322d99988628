"""From a torch module to an artifact, end to end, on a transformer that compiles in two seconds."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm

import tvmq
from tests import tiny_transformer
from tests.schedule.pool import pool_of
from tests.tiny_transformer import compiled, inputs, model
from tests.torch_threads import torch_threads
from tvmq.errors import (
    CalibrationError,
    EnvironmentMismatchError,
    UnsupportedModelError,
    UsageError,
)
from tvmq.images import Preprocessing, load_calibration
from tvmq.quantizer import REQUANTIZE
from tvmq.spec import Coverage, Plan, TensorSpec
from tvmq.tune import tuner

(X,) = inputs(1, seed=9)


class Gated(torch.nn.Module):
    """A linear map, and float operations of three kinds behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(tiny_transformer.WIDTH, tiny_transformer.WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return torch.sigmoid(torch.softmax(y, -1) * y)


def gated(**options: Any) -> tvmq.CompiledModel:
    torch.manual_seed(0)
    given = {"example_inputs": tiny_transformer.example(), "calibration": inputs(), **options}
    return tvmq.compile(Gated().eval(), **given)


def test_integers_equal_the_reference_and_stay_near_the_float_model():
    result = model().verify(X)
    assert (result.ok, result.sites, result.outputs, result.inexact) == (True, 20, 1, ())
    assert model().coverage.macs_integer_fraction == 1
    wanted = tiny_transformer.transformer()(torch.from_numpy(X)).detach().numpy()
    # 22 sites of 8 bits on random weights; a wrong scale or zero point anywhere gives 0.3 and more.
    assert np.abs(model()(X) - wanted).max() < 0.08 * np.abs(wanted).max()


def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path):
    model().save(tmp_path / "m.tvmq")
    one, two = (tvmq.load(tmp_path / "m.tvmq", threads=threads) for threads in (1, 2))
    assert one(X).tobytes() == two(X).tobytes() == model()(X).tobytes()


@pytest.mark.slow
def test_two_compiles_write_the_same_bytes(tmp_path: Path):
    model().save(tmp_path / "a")
    compiled().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.slow
def test_torchs_threads_change_no_byte(tmp_path: Path):
    files, seen = [], set()

    def progress(stage: str, done: int, total: int) -> None:
        if stage in ("import", "balance", "calibrate", "quantize"):
            seen.add(torch.get_num_threads())

    for threads in (1, 2):
        with torch_threads(threads):
            compiled(progress=progress).save(tmp_path / "m.tvmq")
        files.append((tmp_path / "m.tvmq").read_bytes())
    assert files[0] == files[1]
    assert seen == {1}


def test_a_new_process_runs_the_artifact_without_torch_and_without_the_compiler(tmp_path: Path):
    model().save(tmp_path / "m.tvmq")
    np.save(tmp_path / "x.npy", X)
    code = (
        "import sys, numpy as np, tvmq\n"
        f"model = tvmq.load({str(tmp_path / 'm.tvmq')!r}); model.verify().require()\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, model(np.load({str(tmp_path / 'x.npy')!r})))\n"
        "print(*({'tvm', 'torch', 'onnx'} & set(sys.modules)))\n"
        # The compiler still works in this process, whose tvm_ffi was imported without torch.
        f"model.verify(np.load({str(tmp_path / 'x.npy')!r})).require(); import torch; tvmq.compile\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert np.load(tmp_path / "y.npy").tobytes() == model()(X).tobytes()


@pytest.mark.slow
def test_a_target_without_kernels_equals_the_reference(capfd: pytest.CaptureFixture[str]):
    result = compiled(target="x86_baseline").verify(X)
    assert (result.ok, result.sites) == (True, 20)
    assert "Warning" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("requantize", REQUANTIZE)
def test_pruned_channels_and_layers_are_no_trouble(requantize: str):
    pruned = tiny_transformer.Transformer().eval()
    pruned.load_state_dict(tiny_transformer.transformer().state_dict())
    with torch.no_grad():
        for weight in (pruned.blocks[0].fc1.weight, pruned.blocks[0].fc2.weight):
            weight.zero_()
        pruned.blocks[1].qkv.weight[5] = 0
        pruned.blocks[1].proj.weight[5] = 1e-9
    result = compiled(model=pruned, requantize=requantize).verify(X)
    assert (result.ok, result.sites) == (True, 20)


def test_ignored_sites_stay_float_and_coverage_says_why():
    found = compiled(ignored=["blocks.0.fc1", "head"])
    left = {row.site: row.reason for row in found.coverage.rows if not row.integer}
    assert left == {
        "blocks.0.fc1": "matches `ignored`",
        "head": "matches `ignored`",
        "gelu.0": "its input is float already, where a table of 256 values gains nothing",
    }
    assert found.verify(X).ok
    assert found.manifest.description.recipe["ignored"] == ["blocks.0.fc1", "head"]
    assert gated(ignored="fc").manifest.description.recipe["ignored"] == ["fc"]


def test_coverage_and_strict_count_every_float_operation():
    left = {row.site: row.reason for row in gated().coverage.rows if not row.integer}
    assert left == {
        "softmax.0": "softmax outside of attention has no integer kernel yet",
        "multiply.0": "multiply has no integer kernel yet",
        "sigmoid.0": "its input is float already, where a table of 256 values gains nothing",
    }
    with pytest.raises(UnsupportedModelError, match=r"3 of 4 sites would stay in float: sigmoid\.0 \("):
        gated(strict=True)


class Shared(torch.nn.Module):
    """An attention whose queries are its keys too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = (torch.nn.Linear(tiny_transformer.WIDTH, 16) for _ in "qv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, v = self.q(x)[:, None], self.v(x)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(q, q, v)[:, 0]


def test_strict_refuses_what_only_lowering_finds_to_be_float():
    torch.manual_seed(0)
    with pytest.raises(
        UnsupportedModelError, match=r"1 of 3 sites would stay in float: attention\.0 \(it needs queries"
    ):
        tvmq.compile(
            Shared().eval(), example_inputs=tiny_transformer.example(), calibration=inputs(), strict=True
        )


class Running(torch.nn.Module):
    """A sum over all tokens before, which no pipeline of tvmq compiles."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


def test_an_operator_that_cannot_run_is_refused_before_calibration():
    seen: list[str] = []
    with pytest.raises(UnsupportedModelError, match=r"^cumsum\.0: is cumsum, which tvmq cannot run yet"):
        tvmq.compile(
            Running(),
            example_inputs=tiny_transformer.example(),
            calibration=inputs(),
            progress=lambda stage, *_: seen.append(stage),
        )
    assert "calibrate" not in seen


def test_a_nan_weight_and_an_unknown_pattern_are_sentences():
    broken = tiny_transformer.Transformer()
    with torch.no_grad():
        broken.blocks[0].fc1.weight[3, 4] = torch.nan
    with pytest.raises(UsageError, match=r"blocks\.0\.fc1\.weight: holds 1 NaN and 0 infinite of 16384"):
        tvmq.compile(broken, example_inputs=tiny_transformer.example(), calibration=inputs())
    with pytest.raises(
        UsageError, match=r"'blocks\.0\.fc': names no site of this model; near matches: blocks"
    ):
        compiled(ignored=["blocks.0.fc"])


FORMS: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "arrays": list,
    "one array": np.concatenate,
    "tensors": lambda arrays: [torch.from_numpy(a) for a in arrays],
    "tuples": lambda arrays: [(a,) for a in arrays],
    "dicts": lambda arrays: [{"input": a} for a in arrays],
    "generator": lambda arrays: (a for a in arrays),
    "without batch axis": lambda arrays: [a[0] for a in arrays],
}


@pytest.fixture(scope="module")
def linear() -> Callable[..., tvmq.CompiledModel]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(tiny_transformer.WIDTH, 8)).eval()
    return lambda **options: tvmq.compile(module, example_inputs=tiny_transformer.example(), **options)


def test_calibration_data_may_come_in_any_form(linear: Callable[..., tvmq.CompiledModel]):
    hashes = {
        linear(calibration=form(inputs())).manifest.description.calibration_hash for form in FORMS.values()
    }
    assert len(hashes) == 1


def test_how_photos_were_prepared_is_kept(linear: Callable[..., tvmq.CompiledModel], tmp_path: Path):
    np.save(tmp_path / "data.npy", np.concatenate(inputs()))
    said = Preprocessing((0.48145466,), (0.26862954,))
    batches = load_calibration(
        tmp_path / "data.npy", (TensorSpec("x", X.shape, "float32"),), preprocessing=said
    )
    linear(calibration=batches).save(tmp_path / "m.tvmq")
    assert tvmq.load(tmp_path / "m.tvmq").preprocessing == said
    assert linear(calibration=inputs()).preprocessing is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "none given, 8-bit activations need typical inputs"),
        ([], "the data is empty, at least 2 are wanted"),
        (inputs(1), "there is one sample, at least 2 are wanted"),
        (inputs(1) * 4, "all 4 samples are identical"),
        ([*inputs(2), X * np.nan], "batch 2, input .*: 576 of 576 values are NaN"),
        ([*inputs(2), X * np.inf], "batch 2, input .*: 576 of 576 values are infinite"),
        ([a[:, :5] for a in inputs()], r"has shape \[1, 5, 64\], \[1, 9, 64\] is wanted"),
        ([a.astype(np.int32) for a in inputs()], "has dtype int32, float32 is wanted"),
        ([(a, a) for a in inputs()], "holds 2 arrays, the model takes 1"),
    ],
)
def test_unusable_calibration_data_is_a_sentence(
    linear: Callable[..., tvmq.CompiledModel], data: Any, message: str
):
    with pytest.raises(CalibrationError, match=f"calibration.*{message}"):
        linear(calibration=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "4 bits"}, "bits='4 bits': no widths are called that; pass 3 to 8 for"),
        ({"requantize": "dyadic"}, "requantize='dyadic' is unknown; choose one of"),
        ({"observer": "median"}, "observer='median' is unknown; choose one of"),
        ({"threads": 0}, "threads=0: at least 1 is wanted"),
        ({"tune": True}, r"tune=True: a tvmq\.Tune is wanted"),
        ({"tune": False}, r"tune=False: a tvmq\.Tune is wanted"),
        ({"tune": {"trials": 2}}, r"tune={'trials': 2}: a tvmq\.Tune is wanted"),
        ({"target": "x86_avx3"}, "unknown target 'x86_avx3', did you mean 'x86_avx2'"),
        ({"example_inputs": None}, "a torch module does not say its input shapes, wanted example_inputs"),
    ],
)
def test_an_unusable_option_is_a_sentence(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        compiled(**options)


@pytest.mark.parametrize(
    ("database", "features", "xgboost", "message"),
    [
        ("", None, True, "cannot be read as a tuning database"),
        ("file/db", None, True, "cannot be (read|written)"),
        ("db", frozenset(), True, "this machine lacks .*, which 'x86_baseline' needs"),
        ("db", None, False, "xgboost not installed"),
        ("new/db", None, True, "read-only"),
    ],
)
def test_what_tuning_lacks_is_said_before_any_work(
    database: str,
    features: frozenset[str] | None,
    xgboost: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def read_only(*_: Any) -> int:
        raise OSError(errno.EROFS, "a read-only file system")

    (tmp_path / "file").write_bytes(b"")
    if features is not None:
        monkeypatch.setattr(tuner, "cpu_features", lambda: features)
    if not xgboost:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if database == "new/db":
        monkeypatch.setattr(os, "open", read_only)
    seen: list[str] = []
    options = {"target": "x86_baseline", "tune": tvmq.Tune(database=tmp_path / database)}
    with pool_of(1), pytest.raises((UsageError, EnvironmentMismatchError), match=message):
        compiled(progress=lambda stage, *_: seen.append(stage), **options)
    assert seen == []


def test_more_threads_than_row_tiles_have_slack_for(tmp_path: Path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 16)).eval()
    samples = [torch.randn(1, 3136, 64) for _ in range(2)]
    found = tvmq.compile(module, example_inputs=(samples[0],), calibration=samples, threads=128)
    assert found.verify(samples[0].numpy()).ok


@pytest.mark.parametrize("name", ["absent.onnx", "absent.pt2", "weights.pth", "model.txt"])
def test_an_unusable_model_file_is_a_sentence(tmp_path: Path, name: str):
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UsageError, match=f"{name}: .*; "):
        tvmq.compile(tmp_path / name, calibration=inputs())


@pytest.fixture(scope="module")
def reported() -> tuple[tvmq.CompiledModel, list[tuple[str, int, int]]]:
    """A model compiled with options, and what its compilation reported."""
    seen: list[tuple[str, int, int]] = []
    found = compiled(seed=17, observer="percentile", progress=lambda *report: seen.append(report))
    return found, seen


def test_every_stage_ends_where_it_said_it_would(reported: Any):
    _, seen = reported
    starts = [i for i, (_, done, _) in enumerate(seen) if done == 0]
    stages = [seen[a:b] for a, b in zip(starts, [*starts[1:], len(seen)], strict=True)]
    assert " ".join(stage[0][0] for stage in stages) == (
        "import canonicalize balance calibrate steps importance weights lower schedule compile link"
    )
    for stage in stages:
        names, done, totals = zip(*stage, strict=True)
        assert len(set(names)) == len(set(totals)) == 1
        assert list(done) == sorted(done)
        assert done[-1] == totals[0] > 0


def test_the_recipe_tells_how_to_compile_the_model_again(reported: Any):
    found, _ = reported
    recipe = dict(found.manifest.description.recipe)
    versions = recipe.pop("versions")
    assert recipe == {
        "bits": 8, "ignored": [], "requantize": "pot", "observer": "percentile", "preset": "default",
        "seed": 17, "threads": 1, "tuned": [], "photos": None, "samples": 4,
        "module_hash": found.plan.module_hash,
    }  # fmt: skip
    assert {"tvmq", "apache-tvm", "apache-tvm-ffi", "torch", "numpy"} <= set(versions)
    assert found.verify(X).ok


def test_an_artifact_carries_no_calibration_sample(linear: Callable[..., tvmq.CompiledModel]):
    batches = inputs(4, seed=3)
    found = linear(calibration=batches)
    (kept,) = found._golden_arrays()
    assert all(abs(np.corrcoef(kept.ravel(), batch.ravel())[0, 1]) < 0.2 for batch in batches)
    assert found.verify().ok


def test_what_stages_hand_on_survives_being_written(tmp_path: Path):
    for value, kind in ((model().plan, Plan), (model().coverage, Coverage)):
        assert kind.from_json(json.loads(json.dumps(value.to_json()))) == value
    # Quantization is written as the qdq graph, in which its numbers are constants.
    qdq = tiny_transformer.qdq_module()
    again = tvm.ir.load_json(tvm.ir.save_json(qdq))
    tvm.ir.assert_structural_equal(qdq, again)
