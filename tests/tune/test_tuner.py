from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvmq
from tests import tiny_transformer
from tests.schedule.pool import pool_of
from tvmq.errors import UsageError
from tvmq.passes.lower_integer import LowerInteger
from tvmq.target import load_profile
from tvmq.tune import tuner
from tvmq.tune.tuner import kernels_of, tune

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


def test_tuning_for_a_gpu_is_refused_in_a_sentence(tmp_path: Path):
    integer = LowerInteger()(tiny_transformer.qdq_module())
    with pytest.raises(UsageError, match="tune: 'h100' is a GPU, tune measures kernels of CPUs only; go on"):
        tune(integer, load_profile("h100"), tvmq.Tune(database=tmp_path / "db"))


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
def test_a_tuned_model_has_the_same_bits_and_tells_how_it_was_made(tmp_path: Path):
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
