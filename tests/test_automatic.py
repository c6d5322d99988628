"""Bits chosen for the small transformer, by hand-made costs and real evaluations."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tests import hand_made_costs, tiny_transformer
from tvmq.automatic import Chosen, ReferenceModel, Settings, _key, automatic, prepare
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.errors import InfeasibleBudgetError, UnsupportedModelError
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.plan.groups import SiteGroup
from tvmq.plan.options import Budget
from tvmq.spec import W8A8, Precision
from tvmq.target import load_profile

SETTINGS = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)


def chosen(budget: Budget, validation=None, mod: tvm.IRModule | None = None, **changed) -> Chosen:
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


class Names(nn.Module):
    """Gives the number of the best class, not the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = tiny_transformer.transformer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x).argmax(1)


def test_a_model_without_float_outputs_has_a_fastest_plan_but_needs_a_validation_for_a_budget():
    (x,) = tiny_transformer.inputs(1)
    mod = canonicalize(import_model(Names(), (torch.from_numpy(x),)))
    assert {None, W8A8} == set(chosen(Budget(), mod=mod).bits.values())
    with pytest.raises(UnsupportedModelError, match="model: its outputs are int64, a float one is wanted"):
        chosen(Budget(max_size_mb=1), mod=mod)
    found = chosen(Budget(max_size_mb=1, evaluations=1), lambda model: float(model(x)[0]), mod)
    assert (found.report.measure, len(found.report.evaluated)) == ("sqnr", 1)


def test_a_log_is_of_the_samples_that_were_kept_and_of_the_groups():
    mod = tiny_transformer.canonical()
    batches = list(as_batches(tiny_transformer.inputs(8), input_specs(mod)))
    prepared = prepare(mod, batches, SETTINGS, keep=True)
    groups = (SiteGroup("a", ("a",), ("w8a8",)), SiteGroup("b", ("b",), ("w8a8",)))
    others = replace(prepared, held=[(2 * x,) for (x,) in prepared.held])
    keys = {
        _key(prepared, groups, "m"), _key(others, groups, "m"), _key(prepared, groups[::-1], "m"),
        _key(prepared, groups, "other"),
    }  # fmt: skip
    assert len(keys) == 4
    assert _key(prepared, groups, "m") == _key(replace(prepared), groups, "m")


def test_the_reference_is_called_like_a_compiled_model():
    model = ReferenceModel(tiny_transformer.canonical())
    (x,) = tiny_transformer.inputs(1)
    found = model(x)
    assert isinstance(found, np.ndarray)
    assert torch.equal(torch.from_numpy(found), model(torch.from_numpy(x)))
    assert Precision(4, 8) != W8A8
