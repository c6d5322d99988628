from dataclasses import replace

import pytest
import torch

from tests import hand_made_costs, tiny_transformer
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.plan.assign import assign_precisions
from tvmq.plan.groups import SiteGroup, site_groups
from tvmq.plan.problem import Problem
from tvmq.plan.search import Log, uniform
from tvmq.plan_evaluation import Evaluation, log_key, outputs_of
from tvmq.prepared import Prepared, Settings, prepare, uniform_numbers

SETTINGS = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    mod = tiny_transformer.canonical()
    return prepare(mod, list(as_batches(tiny_transformer.inputs(8), input_specs(mod))), SETTINGS, keep=True)


def test_a_log_is_of_the_samples_that_were_kept_and_of_the_groups(prepared: Prepared):
    groups = (SiteGroup("a", ("a",), ("w8a8",)), SiteGroup("b", ("b",), ("w8a8",)))
    others = replace(prepared, held=[(2 * x,) for (x,) in prepared.held])
    keys = {
        log_key(prepared, groups, "m"), log_key(others, groups, "m"), log_key(prepared, groups[::-1], "m"),
        log_key(prepared, groups, "other"),
    }  # fmt: skip
    assert len(keys) == 4
    assert log_key(prepared, groups, "m") == log_key(replace(prepared), groups, "m")


def test_plans_are_judged_by_agreement_of_which_kind_is_said_or_by_the_users_function(prepared: Prepared):
    groups = site_groups(prepared.nodes, assign_precisions(prepared.nodes, prepared.hash), ())
    losses = {(group.name, "w8a8"): 0.0 for group in groups}
    plan = uniform(Problem(groups, losses, hand_made_costs.costs(prepared, ())), "w8a8")
    assert plan is not None
    numbers = {"w8a8": uniform_numbers(prepared, "w8a8")}
    found = Evaluation(prepared, numbers, groups, None, None)
    assert found.metric == (
        "agreement with float (the smaller of probability given to the same classes and 1 less the relative "
        "squared error) on held-out samples"
    )
    assert found.of_float(Log(None, "")) == 1.0
    assert 0.5 < found.of_plan(plan) < 1.0
    given = []
    judged = Evaluation(prepared, numbers, groups, lambda model: given.append(model) or 0.25, None)
    assert (judged.metric, judged.of_plan(plan)) == ("validation", 0.25)
    assert judged.of_made(prepared.mod, "compiled") == 0.25
    assert given[-1] == "compiled"


def test_workers_change_no_bit_and_leave_torchs_threads_alone(prepared: Prepared):
    before = torch.get_num_threads()
    one, many = (outputs_of(prepared.mod, prepared.held * 5, workers) for workers in (1, 3))
    assert len(one) == 5 * len(prepared.held)
    assert all(torch.equal(a, b) for x, y in zip(one, many, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(one[0][0], one[1][0])
    assert torch.get_num_threads() == before
