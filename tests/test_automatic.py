"""Bits chosen for the small transformer, by hand-made costs and real evaluations."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import hand_made_costs, tiny_transformer
from tvmq.automatic import Chosen, ReferenceModel, Settings, automatic
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.errors import InfeasibleBudgetError
from tvmq.plan.options import Budget
from tvmq.spec import W8A8, Precision
from tvmq.target import load_profile

SETTINGS = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)


def chosen(budget: Budget, validation=None, **changed) -> Chosen:
    mod = tiny_transformer.canonical()
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


def test_an_impossible_size_names_the_ends():
    with pytest.raises(
        InfeasibleBudgetError, match=r"budget of 0.001 MB: no plan keeps to it; the fastest plan"
    ):
        chosen(Budget(max_size_mb=0.001))


def test_strict_leaves_nothing_in_float():
    found = chosen(Budget(), strict=True)
    assert set(found.bits.values()) == {W8A8}


def test_the_reference_is_called_like_a_compiled_model():
    model = ReferenceModel(tiny_transformer.canonical())
    (x,) = tiny_transformer.inputs(1)
    found = model(x)
    assert isinstance(found, np.ndarray)
    assert torch.equal(torch.from_numpy(found), model(torch.from_numpy(x)))
    assert Precision(4, 8) != W8A8
