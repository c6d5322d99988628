import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plan.cost_tables import problem
from tvmq.errors import SolverTooSlowError, UsageError
from tvmq.plan import search as plan_search
from tvmq.plan.problem import Assignment, Limits, within
from tvmq.plan.program import solve
from tvmq.plan.search import Goal, Log, Outcome, neighbours, pareto_set, search, uniform

RANDOM = np.random.default_rng(1)
TRUE = {}  # what each group really loses
ROWS = {}
for number in range(10):
    hurt, size = float(RANDOM.lognormal(sigma=1)), int(RANDOM.integers(50, 200))
    ROWS[f"g{number}"] = {
        "w8a8": (hurt * 0.01, 1.0, size),
        "w4a8": (hurt * 0.3, 0.8, size // 2),
        "float": (0.0, 3.0, 4 * size),
    }
    TRUE[f"g{number}"] = hurt * float(np.exp(RANDOM.standard_normal()))
OF = problem(ROWS)
EIGHT = uniform(OF, "w8a8")
assert EIGHT is not None
GOAL = Goal(limits=Limits(ms=9.0, size=round(0.8 * EIGHT.size)))


def worth(plan: Assignment) -> float:
    bits = {"w8a8": 0.01, "w4a8": 0.3, "float": 0.0}
    return 100 - sum(TRUE[group] * bits[p] for group, p in plan.precisions.items())


def found(path: Path | None = None, goal: Goal = GOAL, evaluate=worth, **options) -> Outcome:
    return search(OF, goal, evaluate, log=Log(path, "a"), **options)


def test_the_search_finds_better_plans_than_the_predicted_best():
    outcome = found()
    first, best = outcome.evaluated[0], outcome.best
    assert first.plan.loss == pytest.approx(solve(OF, GOAL.limits).loss, abs=1e-4)
    assert best.metric > first.metric
    assert best.metric == max(each.metric for each in outcome.evaluated)
    assert all(within(each.plan, GOAL.limits) for each in outcome.evaluated)
    assert len({each.plan.key for each in outcome.evaluated}) == len(outcome.evaluated) > 8
    assert best in outcome.pareto
    assert not any(a.beats(b) for a in outcome.pareto for b in outcome.pareto)
    assert pareto_set(outcome.pareto) == outcome.pareto


def test_no_plan_of_one_width_within_the_limits_is_worth_more_than_what_is_found():
    four = uniform(OF, "w4a8")
    assert four is not None
    assert within(four, GOAL.limits)
    outcome = found(evaluations=3, evaluate=lambda plan: float(plan.key == four.key))
    assert outcome.best.plan.key == four.key


def test_without_a_limit_of_time_plans_are_hardly_slower_than_the_fastest():
    size = Limits(size=GOAL.limits.size)
    fastest = solve(OF, size, "ms")
    outcome = found(goal=Goal(limits=size))
    assert max(each.plan.ms for each in outcome.evaluated) <= 1.2 * fastest.ms
    assert outcome.best.plan.loss < fastest.loss


def test_with_a_least_metric_the_cheapest_plan_that_reaches_it_is_taken():
    outcome = found(goal=Goal(limits=Limits(), least_metric=99.0))
    assert outcome.enough
    reached = [each for each in outcome.evaluated if each.metric >= 99.0]
    assert outcome.best.plan.ms == min(each.plan.ms for each in reached)
    missed = found(goal=Goal(limits=GOAL.limits, least_metric=99.999))
    assert not missed.enough
    assert missed.best.metric == max(each.metric for each in missed.evaluated)


def test_the_time_and_the_number_of_evaluations_end_it_but_never_before_one():
    clock = iter(range(0, 10**6, 61))
    outcome = found(minutes=2, now=lambda: float(next(clock)))
    assert (len(outcome.evaluated), outcome.ended) == (2, "2 minutes are over")
    assert len(found(minutes=0.0, now=lambda: 0.0).evaluated) == 1
    assert found(evaluations=5).ended == "5 plans were evaluated"


class KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 7])
def test_a_search_that_was_cut_goes_on_and_ends_alike(tmp_path: Path, after: int):
    calls: list[Assignment] = []

    def cut(plan: Assignment) -> float:
        calls.append(plan)
        if len(calls) > after:
            raise KilledError
        return worth(plan)

    with pytest.raises(KilledError):
        found(tmp_path / "log", evaluate=cut)
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"search": "a", "prec')  # torn
    rest: list[Assignment] = []
    whole = found()
    resumed = found(tmp_path / "log", evaluate=lambda plan: rest.append(plan) or worth(plan))
    assert resumed == whole
    assert len(rest) == len(whole.evaluated) - after
    # Another key's lines are not used, and everything is on the disk, each on a line of its own.
    assert Log(tmp_path / "log", "b").known == {}
    assert Log(tmp_path / "log", "a").known.keys() == {each.plan.key for each in whole.evaluated}


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_same_result(tmp_path: Path):
    code = (
        "import os, signal, sys, pathlib, dataclasses, json\n"
        "from tests.plan.test_search import *\n"
        "def dies(plan):\n"
        f"    path = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "    if path.read_bytes().count(b'\\n') >= 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return worth(plan)\n"
        f"found(pathlib.Path({str(tmp_path / 'log')!r}), evaluate=dies)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len((tmp_path / "log").read_text().splitlines()) == 4
    assert found(tmp_path / "log") == found()
    assert all(json.loads(line)["search"] == "a" for line in (tmp_path / "log").read_text().splitlines())


def test_a_solver_that_is_too_slow_for_the_pareto_set_ends_no_search(monkeypatch):
    def slow(*_):
        raise SolverTooSlowError("20 seconds were not enough")

    monkeypatch.setattr(plan_search, "sweep", slow)
    assert found().best.metric >= found(evaluations=1).best.metric


def test_neighbours_keep_to_the_limits_and_are_others():
    best = solve(OF, GOAL.limits)
    near = neighbours(OF, best, GOAL.limits)
    assert 2 <= len(near) <= 8
    assert best.key not in {plan.key for plan in near}
    assert all(within(plan, GOAL.limits) for plan in near)
    assert near == neighbours(OF, best, GOAL.limits)


@pytest.mark.parametrize("metric", [float("nan"), None, "good", True, np.ones(2), torch.ones(2)])
def test_what_validation_returns_must_be_a_number(metric: object):
    with pytest.raises(UsageError, match=r"validation: returned .*, a finite number is wanted"):
        found(evaluate=lambda plan: metric)


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match=r"none/log: folder .*none' does not exist; create it first"):
        Log(tmp_path / "none" / "log", "a")


@pytest.mark.parametrize("content", [b"\x08\x07\x12\x04onnx", b'{"note": "mine"}\n', b"no line"])
def test_a_file_of_something_else_is_refused_and_stays_what_it_was(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model.onnx: not one line of it is a search record"):
        Log(path, "a").add(("w8a8",), 1.0)
    assert path.read_bytes() == content
