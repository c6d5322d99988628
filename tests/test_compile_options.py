from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tvmq
from tests import hand_made_costs, tiny_transformer
from tests.schedule.pool import pool_of
from tvmq import pipeline
from tvmq.automatic import SIZE_ROUNDS
from tvmq.compile_options import Held, Options, check_budget, check_build
from tvmq.compiled import CompiledModel
from tvmq.device import Device
from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.plan.options import Budget
from tvmq.plan.recipe import Recipe
from tvmq.reference_model import ReferenceModel
from tvmq.spec import W8A8, Precision
from tvmq.target import load_profile
from tvmq.tune.database import Database, Event, setting_of

(X,) = tiny_transformer.inputs(1, seed=9)
WANTED = tiny_transformer.transformer()(torch.from_numpy(X)).detach().numpy()


def options(bits=8, recipe=None) -> Options:
    return Options.of(bits, "norm", "pot", "mse", "fast", 0, 1, recipe)


def test_bits_may_be_one_number_or_one_by_pattern_or_automatic():
    assert options("w4a8").given == Precision(4, 8)
    assert options({"*": 6, "head": "float", "fc": None}).given == {
        "*": Precision(6, 6),
        "head": None,
        "fc": None,
    }
    assert options("auto").bits == "auto"
    with pytest.raises(UsageError, match="bits='w9': no widths"):
        options({"*": "w9"})


def test_a_recipe_takes_the_place_of_options_and_has_bits_of_its_own():
    recipe = Recipe({"*": W8A8}, options={"seed": 5, "preset": "best", "ignored": ["head"]})
    found = options(recipe=recipe)
    assert (found.seed, found.preset, found.ignored, found.requantize) == (5, "best", ("head",), "pot")
    with pytest.raises(UsageError, match="recipe: has bits of its own; leave out bits='auto'"):
        options("auto", recipe)


def test_a_budget_wants_automatic_bits():
    check_budget(options("auto"), Budget(max_size_mb=1), print)
    with pytest.raises(UsageError, match='a budget and validation are for bits="auto" alone'):
        check_budget(options(), Budget(max_size_mb=1), None)
    with pytest.raises(UsageError, match="validation=3: a function of a model is wanted"):
        check_budget(options("auto"), Budget(), 3)
    with pytest.raises(UsageError, match=r"min_coverage=80: a share from 0 to 1 is wanted"):
        check_build(1, None, 80)


def test_a_file_of_something_else_is_no_log_which_is_said_before_any_work(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(UsageError, match=r"model.onnx: not one line of it is a search record"):
        check_budget(options("auto"), Budget(max_size_mb=1, log=tmp_path / "model.onnx"), None)
    assert (tmp_path / "model.onnx").read_bytes() == b"\x08\x07"


def test_data_that_comes_once_is_held():
    assert Held.of([1]) == [1]
    held = Held.of(iter([1, 2]))
    assert (list(held), list(held)) == ([1, 2], [1, 2])


@pytest.mark.slow
def test_a_recipe_compiles_to_the_same_bytes_and_to_others_once_edited(tmp_path: Path):
    bits = {"*": "w4a8", "blocks.1.*": 8, "blocks.0.norm2": "float"}
    first = tiny_transformer.compiled(bits=bits, preset="fast")
    first.save(tmp_path / "first.tvmq")
    first.recipe.save(tmp_path / "r.toml")
    tiny_transformer.compiled(recipe=tmp_path / "r.toml").save(tmp_path / "again.tvmq")
    assert (tmp_path / "again.tvmq").read_bytes() == (tmp_path / "first.tvmq").read_bytes()
    recipe = Recipe.load(tmp_path / "r.toml")
    assert recipe.reasons["blocks.0.norm2"] == "its bits are given as float"
    assert recipe.bits["blocks.0.fc1"] == Precision(4, 8)
    other = Recipe(recipe.bits, options=recipe.options, model="0" * 16)
    with pytest.raises(UsageError, match=r"recipe: is for another model \(hash 0000"):
        tiny_transformer.compiled(recipe=other)
    with pytest.raises(UnsupportedModelError, match=r"min_coverage=0.99: 0\.\d+ of the multiplications"):
        tiny_transformer.compiled(bits={"blocks.*.fc1": "float"}, preset="fast", min_coverage=0.99)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:max_size_mb=")  # so small a file may miss it by a kernel, which is said
def test_automatic_bits_from_the_model_to_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "measured_costs", lambda *_: hand_made_costs.costs)
    whole = tiny_transformer.compiled(bits="auto", preset="fast")
    assert whole.search is not None
    whole.save(tmp_path / "whole.tvmq")
    limit = 0.9 * (tmp_path / "whole.tvmq").stat().st_size / 1e6
    calls = []

    def validation(model) -> float:
        calls.append(model)
        return -float(np.abs(model(X) - WANTED).mean())

    options = {"bits": "auto", "preset": "fast", "max_size_mb": limit, "validation": validation}
    found = tiny_transformer.compiled(**options, budget=Budget(evaluations=2))
    assert found.search is not None
    first, *others = (type(model) for model in calls)
    assert (first, set(others)) == (ReferenceModel, {CompiledModel})
    # Two for each time that the size of code is looked at, and what was made at the end.
    assert 2 <= len(others) <= 2 * SIZE_ROUNDS + 1
    weights = {site.precision.weight_bits for site in found.plan.sites if site.precision}
    assert weights >= {8, 4}
    assert found.verify(X).ok
    # The artifact says no more than the recipe, which makes it again.
    found.save(tmp_path / "a.tvmq")
    found.recipe.save(tmp_path / "r.toml")
    tiny_transformer.compiled(recipe=tmp_path / "r.toml").save(tmp_path / "b.tvmq")
    assert (tmp_path / "a.tvmq").read_bytes() == (tmp_path / "b.tvmq").read_bytes()
    reasons = {row.site: row.reason for row in found.coverage.rows}
    faster, larger = (
        "float: w8a8 with its conversions is",
        "ms slower than float, which does not fit the budget",
    )
    assert all(
        reasons[name].startswith(faster) or larger in reasons[name] for name in reasons if "norm" in name
    )


@pytest.mark.parametrize("boards", [None, Device("desk", 1, "rpi4")])
@pytest.mark.parametrize("trials", [0, 8])
def test_an_automatic_plan_is_priced_with_the_decisions_that_it_will_be_built_with(
    trials: int, boards: Device | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    profile = load_profile("rpi4" if boards else "native")
    monkeypatch.setattr(Device, "require", lambda *_: SimpleNamespace(processor=lambda _: "a board"))
    database = Database(tmp_path / "tuning.jsonl", setting_of(profile, 1, "a board" if boards else None))
    done: list[Any] = []

    def tuned(mod: object, *_: Any, device: Device | None, **__: Any) -> tuple[()]:
        assert device is boards
        done.append(mod)
        database.append(Event.CHOSEN, "a kernel", {"lanes": 3}, us=1.0, default_us=2.0, trials=8)
        return ()

    monkeypatch.setattr(pipeline, "tuned_kernels", tuned)
    monkeypatch.setattr(pipeline, "uniform", lambda subject, precision: (None, None, precision))
    monkeypatch.setattr(pipeline, "cost_table", lambda *_, decisions, **__: done.append(dict(decisions)))
    budget = Budget(costs=tmp_path / "costs.jsonl", measure_costs=False)
    tune = tvmq.Tune(trials=trials, database=database.path)
    settings = SimpleNamespace(ignored=())
    known = dict.fromkeys(("mod", "nodes", "seen", "hash"), "a model") | {"settings": settings}
    with pool_of(1):
        costs = pipeline.measured_costs(profile, budget, 1, lambda *_: None, tune, boards)
        costs(SimpleNamespace(**known), ())
    assert done == ([W8A8, {"a kernel": {"lanes": 3}}] if trials else [{}])
