import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmq
from tests import tiny_transformer
from tests.schedule.pool import pool_of
from tests.tune.synthetic import CostBench, idle
from tvmq import gpu
from tvmq.device import Device, Machine
from tvmq.errors import UsageError
from tvmq.gpu import Gpu, Gpus
from tvmq.passes.lower_integer import LowerInteger
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile, load_profile
from tvmq.tune import database, tuner
from tvmq.tune.here import ThisMachine
from tvmq.tune.tuner import kernels_of, tune

HERE = f"{platform.machine()}-linux-gnu"  # beside a GPU of this machine
(X,) = tiny_transformer.inputs(1, seed=9)


def test_a_machine_that_cannot_run_the_code_cannot_tune(tmp_path: Path):
    integer = LowerInteger()(tiny_transformer.qdq_module())
    known = load_profile("x86_avx2").features
    profile = replace(load_profile("x86_avx2"), features=known | {"amx_of_tomorrow"})
    with pytest.raises(UsageError, match="lacks amx_of_tomorrow, which 'x86_avx2' needs"):
        tune(integer, profile, tvmq.Tune(database=tmp_path / "db"))
    found = tune(integer, profile, tvmq.Tune(trials=0, database=tmp_path / "db"))
    assert found
    assert all(kernel.decisions is None for kernel in found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Gpus((), "this machine has no driver for one", "install it"),
            "this machine has no driver for one, and",
        ),
        (Gpus((Gpu("L4", (8, 9), 13),)), r"this one \(L4\) has 8.9, and"),
    ],
)
def test_tuning_for_a_gpu_that_is_not_here_wants_a_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Gpus, words: str
):
    for module in (gpu, tuner, database):
        monkeypatch.setattr(module, "these_gpus", lambda: found)
    integer = LowerInteger()(tiny_transformer.qdq_module())
    profile = replace(load_profile("h100"), tvm_target={**load_profile("h100").tvm_target, "mtriple": HERE})
    text = rf"tune: 'h100' needs an NVIDIA GPU of compute capability 9.0 .*; {words} tune measures here; "
    with pytest.raises(UsageError, match=text + "give a board of that kind, .* as --device, or go on"):
        tune(integer, profile, tvmq.Tune(database=tmp_path / "db"))
    assert tune(integer, profile, tvmq.Tune(trials=0, database=tmp_path / "db"))


@pytest.mark.parametrize("device", [None, Device("desk", 1, "gpus")])
def test_kernels_of_a_gpu_are_measured_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device | None
):
    """Their bench is that of boards; records are of the GPU that is measured, whatever the threads."""
    local, there = Gpu("L4 here", (8, 9), 13), Gpu("L40 there", (8, 9), 13)
    for module in (gpu, tuner, database):
        monkeypatch.setattr(module, "these_gpus", lambda: Gpus((Gpu("old", (6, 1), 13), local)))
    machine = Machine("x86_64", "a CPU", (), 8, (there,), "", "", "")
    monkeypatch.setattr(Device, "require", lambda *_: machine)
    profile = replace(load_profile("rtx"), tvm_target={**load_profile("rtx").tvm_target, "mtriple": HERE})
    asked: list[Any] = []

    class Bench(CostBench):
        def __init__(self, use: Use, _profile: TargetProfile, place: Any, _threads: int) -> None:
            super().__init__(use)
            asked.append(place)

        def trial(self, decisions: Decisions) -> tuple[float, float]:
            return 1e-6, 2e-6

        def final(self, finalists: Sequence[Decisions]) -> list[float]:
            return [2e-6, *[1e-6] * len(finalists)]

    monkeypatch.setattr(tuner, "BoardBench", Bench)
    integer = LowerInteger()(tiny_transformer.qdq_module())
    options = tvmq.Tune(trials=1, database=tmp_path / "db")
    found = tune(integer, profile, options, threads=7, device=device)
    assert all(kernel.trials == 1 for kernel in found)
    assert asked
    assert all(place is device if device else isinstance(place, ThisMachine) for place in asked)
    lines = [json.loads(line) for line in (tmp_path / "db").read_text().splitlines()]
    name = there.name if device else local.name
    assert {(line["setting"]["cpu"], line["setting"]["threads"]) for line in lines} == {(name, 1)}
    calls = len(asked)
    assert tune(integer, profile, options, threads=1, device=device) == found
    assert len(asked) == calls


def test_tuning_tiles_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    profile = load_profile("x86_amx")
    monkeypatch.setattr(tuner, "cpu_features", lambda: profile.features)
    monkeypatch.setattr(tuner, "allow_amx_tiles", lambda: False)
    integer = LowerInteger()(tiny_transformer.qdq_module())
    with pytest.raises(UsageError, match="does not let this process use AMX tiles"):
        tune(integer, profile, tvmq.Tune(database=tmp_path / "db"))


@pytest.mark.isa("avx2")
def test_the_kernels_of_a_model_are_counted():
    integer = LowerInteger()(tiny_transformer.qdq_module())
    uses = kernels_of(integer, load_profile("x86_avx2"), threads=1)
    # 4 linears in each of 2 blocks (q, k and v apart), and the head.
    assert sum(use.calls for use in uses.values() if use.kernel.name.startswith("linear")) == 13
    assert len({use.kernel.semantics for use in uses.values()}) == len(uses) < 13
    assert all(use.arguments[0] is None for use in uses.values())
    assert all(use.arguments[1].dtype == np.int8 for use in uses.values() if "linear" in use.kernel.name)


@pytest.mark.slow
@pytest.mark.isa("avx2")
def test_a_tuned_model_has_the_same_bits_and_tells_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tuner, "Neighbours", idle)  # other tests take the cores
    with pool_of(1):
        options = {"calibration": tiny_transformer.inputs(), "target": "x86_avx2"}
        tuned = tiny_transformer.compiled(tune=tvmq.Tune(trials=3, database=tmp_path / "db"), **options)
        plain = tiny_transformer.compiled(**options)
        assert np.array_equal(tuned(X), plain(X))
        tuned.verify(X).require()
        recipe = tuned.manifest.description.recipe["tuned"]
        # One output group of one row leaves AVX2 nothing to choose.
        assert [k["trials"] for k in recipe if k["name"].startswith("linear_9x")] == [3] * 4
        assert plain.manifest.description.recipe["tuned"] == []
        lines = (tmp_path / "db").read_bytes()
        again = tiny_transformer.compiled(tune=tvmq.Tune(trials=0, database=tmp_path / "db"), **options)
        assert again.manifest.description.recipe["tuned"] == recipe
        assert (tmp_path / "db").read_bytes() == lines
