"""Bits chosen for the small transformer, by hand-made costs and real evaluations."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import tvm
from torch import nn

import tvmq
from tests import hand_made_costs, tiny_transformer
from tvmq.automatic import Chosen, Plans, automatic
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.errors import InfeasibleBudgetError, TvmqWarning, UnsupportedModelError
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.pipeline import warn_of_size
from tvmq.plan.options import Budget
from tvmq.plan.problem import Assignment, Limits, within
from tvmq.plan.search import search, uniform
from tvmq.prepared import Settings
from tvmq.reference_model import ReferenceModel
from tvmq.spec import W8A8
from tvmq.target import load_profile

SETTINGS = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)


def chosen(budget: Budget, validation=None, mod: tvm.IRModule | None = None, **changed) -> Chosen:
    return plans(budget, validation, mod, **changed).chosen[0]


def plans(budget: Budget, validation=None, mod: tvm.IRModule | None = None, size_of=None, **changed) -> Plans:
    mod = mod or tiny_transformer.canonical()
    batches = list(as_batches(tiny_transformer.inputs(8), input_specs(mod)))
    settings = Settings(**{name: getattr(SETTINGS, name) for name in Settings.__slots__} | changed)
    return automatic(
        mod,
        batches,
        load_profile("x86_baseline"),
        budget,
        settings,
        hand_made_costs.costs,
        validation=validation,
        size_of=size_of,
    )


@cache
def plain() -> Chosen:
    return chosen(Budget())


def test_without_a_budget_sites_have_8_bits_unless_float_is_faster():
    found = plain()
    norms = {f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)} | {"norm"}
    assert {site for site, precision in found.bits.items() if precision is None} == norms
    assert {precision for precision in found.bits.values() if precision} == {W8A8}
    assert found.reasons["norm"].startswith("float: w8a8 with its conversions is 0.")
    assert found.report.float_metric is None
    assert found.report.ended.startswith("nothing was limited")


@pytest.mark.slow
def test_a_size_makes_some_weights_smaller_and_evaluations_decide_which(tmp_path: Path):
    eight = plain().report.chosen
    limit = 0.75 * eight.size / 1e6
    budget = Budget(max_size_mb=limit, evaluations=5, log=tmp_path / "log.jsonl")
    found = chosen(budget)
    report = found.report
    assert report.chosen.size <= 1e6 * limit
    assert {p.weight_bits for p in found.bits.values() if p} >= {8, 4}
    assert len(report.evaluated) == 5
    assert (
        0.5 < report.chosen_metric == max(each.metric for each in report.evaluated) < 1 == report.float_metric
    )
    assert {group.name for group in report.groups} == set(report.chosen.precisions)
    assert all(group.reason for group in report.groups)
    # Nothing is evaluated twice: the log has it all.
    lines = (tmp_path / "log.jsonl").read_text()
    again = chosen(budget)
    assert (tmp_path / "log.jsonl").read_text() == lines
    assert (again.bits, again.report) == (found.bits, report)


@pytest.mark.slow
def test_a_drop_is_kept_to_and_the_users_function_judges():
    seen = []

    def validation(model) -> float:
        x = torch.from_numpy(tiny_transformer.inputs(1, seed=3)[0])
        wanted = tiny_transformer.transformer()(x).detach()
        seen.append(model)
        return 100 - 1000 * float((model(x) - wanted).square().mean())

    found = chosen(Budget(max_drop=30.0, evaluations=4), validation)
    assert isinstance(seen[0], ReferenceModel)
    assert found.report.float_metric == pytest.approx(100, abs=1e-3)
    assert found.report.drop <= 30
    assert len(seen) == 5
    with pytest.raises(InfeasibleBudgetError, match=r"max_drop=0: the best of 2 plans within .* drops by"):
        chosen(Budget(max_drop=0.0, max_size_mb=0.15, evaluations=2), validation)


def test_a_larger_budget_has_six_bits_where_these_pay():
    limit = 0.85 * plain().report.chosen.size / 1e6
    found = chosen(Budget(max_size_mb=limit, evaluations=1))
    assert {6, 8} <= {p.weight_bits for p in found.bits.values() if p}


@pytest.mark.slow
def test_a_plan_of_one_width_whose_file_just_fits_is_tried(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Assignment, Limits]] = []

    def searched(problem, goal, *arguments, **options):
        six = uniform(problem, "w6a8")
        assert six is not None
        seen.append((six, goal.limits))
        return search(problem, goal, *arguments, **options)

    def with_code(self, problem, plan, size_of):
        code = 2_000 if "w6a8" in plan.precisions.values() else 3_000  # beside 6 bits, and beside others
        return replace(problem, costs=replace(problem.costs, fixed_bytes=code))

    monkeypatch.setattr("tvmq.automatic.search", searched)
    monkeypatch.setattr("tvmq.automatic.Evaluation.with_code", with_code)
    plans(Budget(max_size_mb=1, evaluations=1))
    without_code = seen[0][0].size - 1000  # what hand_made_costs has
    plans(Budget(max_size_mb=(without_code + 2_000) / 1e6, evaluations=1), size_of=lambda *_: 0)
    assert within(*seen[1])


def test_the_time_is_shared_by_all_rounds_of_a_search(monkeypatch: pytest.MonkeyPatch):
    eight, hours = plain().report.chosen, iter(range(10**6))
    began: list[float] = []
    asked: list[int] = []

    def searched(*arguments, **options):
        began.append(options["began"])
        return search(*arguments, **options)

    def with_code(self, problem, plan, size_of):
        asked.append(plan.size)
        # The code of the first plan that was found takes more than the limit leaves for it.
        missing = int(0.75 * eight.size) - plan.size + 1000
        more = problem.costs.fixed_bytes + missing * (len(asked) == 2)
        return replace(problem, costs=replace(problem.costs, fixed_bytes=more))

    monkeypatch.setattr("tvmq.automatic.search", searched)
    monkeypatch.setattr("tvmq.automatic.Evaluation.with_code", with_code)
    monkeypatch.setattr(time, "monotonic", lambda: 3600.0 * next(hours))
    budget = Budget(max_size_mb=0.75 * eight.size / 1e6, minutes=1)
    (found,) = plans(budget, size_of=lambda *_: 0).chosen
    assert len(began) == 2
    assert len(set(began)) == 1
    assert found.report.ended == "1 minutes are over"


def test_a_plan_that_drops_too_far_once_it_is_made_gives_way_to_the_next_or_to_an_error():
    eight = plain().report.chosen
    found = plans(Budget(max_drop=0.2, max_size_mb=0.9 * eight.size / 1e6, evaluations=6))
    assert 1 < len(found.chosen) <= 3
    first, second = found.chosen[:2]
    assert first.report.chosen.ms <= second.report.chosen.ms
    mod = tiny_transformer.canonical()
    good = found.made(first, mod, None)
    assert good is not None
    assert good.final_metric == pytest.approx(1)
    assert good.final_drop == pytest.approx(0, abs=1e-6)
    found.evaluation.of_module = lambda mod: 0.5
    assert [found.made(each, mod, None) for each in found.chosen[:-1]] == [None] * (len(found.chosen) - 1)
    with pytest.raises(
        InfeasibleBudgetError, match=r"max_drop=0.2: made with the chosen preset, plans drop .*, by 0.5 \(of"
    ):
        found.made(found.chosen[-1], mod, None)


def test_an_impossible_size_names_the_ends():
    with pytest.raises(
        InfeasibleBudgetError, match=r"budget of 0.001 MB: no plan keeps to it; the fastest plan"
    ):
        chosen(Budget(max_size_mb=0.001))


def test_strict_leaves_nothing_in_float():
    found = chosen(Budget(), strict=True)
    assert set(found.bits.values()) == {W8A8}


class Names(nn.Module):
    """Gives the number of the best class, not the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = tiny_transformer.transformer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x).argmax(1)


@pytest.mark.slow
def test_a_model_without_float_outputs_has_a_fastest_plan_but_needs_a_validation_for_a_budget():
    (x,) = tiny_transformer.inputs(1)
    mod = canonicalize(import_model(Names(), (torch.from_numpy(x),)))
    assert {None, W8A8} == set(chosen(Budget(), mod=mod).bits.values())
    with pytest.raises(UnsupportedModelError, match="model: its outputs are int64, a float one is wanted"):
        chosen(Budget(max_size_mb=1), mod=mod)
    found = chosen(Budget(max_size_mb=1, evaluations=1), lambda model: float(model(x)[0]), mod)
    assert (found.report.measure, len(found.report.evaluated)) == ("sqnr", 1)


@pytest.mark.slow
def test_an_automatic_plan_keeps_to_its_size_as_a_file(tmp_path: Path):
    samples = [torch.from_numpy(x) for x in tiny_transformer.inputs(8)]
    options = {"calibration": samples, "example_inputs": samples[:1], "preset": "fast", "threads": 1}
    uniform = tvmq.compile(tiny_transformer.transformer(), **options)
    uniform.save(tmp_path / "uniform.tvmq")
    megabytes = 0.95 * (tmp_path / "uniform.tvmq").stat().st_size / 1e6
    budget = Budget(evaluations=2, costs=tmp_path / "costs.jsonl", measure_costs=False)
    found = tvmq.compile(
        tiny_transformer.transformer(), bits="auto", max_size_mb=megabytes, budget=budget, **options
    )
    found.save(tmp_path / "found.tvmq")
    assert (tmp_path / "found.tvmq").stat().st_size <= 1e6 * megabytes
    with pytest.warns(TvmqWarning, match="the artifact takes .* MB, for its kernels take"):
        warn_of_size(found, Budget(max_size_mb=megabytes / 2))
