import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.cost_tables import problem
from tvmq.errors import InfeasibleBudgetError
from tvmq.plan.problem import Assignment, Limits, Moment, Problem, within
from tvmq.plan.program import solve, sweep
from tvmq.plan.values import OUTSIDE, Reading, Value

PRECISIONS = ("w8a8", "w4a8", "w2a8", "float")
parts = st.integers(0, 20)


@st.composite
def problems(draw) -> Problem:
    names = [f"g{i}" for i in range(draw(st.integers(1, 4)))]
    rows = {}
    for name in names:
        taken = draw(st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=4, unique=True))
        rows[name] = {
            p: (0.0 if p == "float" else draw(parts) / 16, draw(parts) / 8, draw(parts)) for p in taken
        }
    values: list[Value] = []
    summed = draw(st.lists(st.booleans(), max_size=5))
    sums = [f"v{at}" for at, is_sum in enumerate(summed) if is_sum]
    for at, is_sum in enumerate(summed):
        before = [name for name in sums if int(name[1:]) < at]
        after = st.sampled_from([*names, OUTSIDE, *sums[len(before) :]])
        readings = tuple(
            Reading(tuple(draw(st.lists(after, min_size=1, max_size=3))), (draw(parts),), draw(parts) / 8)
            for _ in range(draw(st.integers(1, 2)))
        )
        direct = draw(st.booleans())
        made_by = st.sampled_from([*names, OUTSIDE, *before])
        writers = tuple(draw(st.lists(made_by, max_size=3 if is_sum else 1)))
        up = draw(parts) / 8
        values.append(Value(f"v{at}", writers, readings, is_sum, direct, from_float=up))
    moments = []
    for _ in range(draw(st.integers(0, 2)) if values else 0):
        alive = draw(st.lists(st.sampled_from([v.name for v in values]), min_size=1, unique=True))
        sizes = [{name: draw(parts) for name in alive} for _ in range(2)]
        moments.append(Moment(draw(parts), *sizes, draw(st.sampled_from(["", *alive]))))
    return problem(rows, values=values, moments=moments, fixed_ms=draw(parts) / 8, fixed_bytes=draw(parts))


def every(of: Problem) -> list[Assignment]:
    names, choices = zip(*of.choices.items(), strict=True)
    return [of.assignment(dict(zip(names, taken, strict=True))) for taken in itertools.product(*choices)]


@st.composite
def limited(draw) -> tuple[Problem, Limits]:
    """Return limits that lie near plans, where they decide something."""
    found = draw(problems())
    plans = every(found)
    at = {name: draw(st.none() | st.sampled_from(sorted({getattr(p, name) for p in plans}))) for name in KEYS}
    return found, Limits(**at)


KEYS = ("ms", "size", "memory", "loss")


@settings(max_examples=60, deadline=None)
@given(limited(), st.sampled_from(["loss", "ms", "size"]))
def test_the_program_finds_what_trying_every_plan_finds(case: tuple[Problem, Limits], least: str):
    of, limits = case
    allowed = [plan for plan in every(of) if within(plan, limits)]
    if not allowed:
        with pytest.raises(
            InfeasibleBudgetError, match=r"the fastest plan takes .* the smallest plan takes .* the most"
        ):
            solve(of, limits, least)
        return
    found = solve(of, limits, least)
    assert within(found, limits)
    assert getattr(found, least) == pytest.approx(min(getattr(plan, least) for plan in allowed), abs=1e-5)
    assert found == of.assignment(found.precisions)


@settings(max_examples=20, deadline=None)
@given(problems(), st.sampled_from(["ms", "size", "memory"]))
def test_more_room_never_makes_a_plan_less_accurate(of: Problem, name: str):
    losses = []
    for limit in sorted({getattr(plan, name) for plan in every(of)}):
        losses.append(solve(of, Limits(**{name: limit})).loss)
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(losses))


def chain(groups: int, seed: int = 0) -> Problem:
    """Return groups in a row, as a transformer has them: fewer bits are smaller and lose more.

    Every third adds to a trunk, which the next one and all later sums read.
    """
    random = np.random.default_rng(seed)
    rows, edges, sums, trunk = {}, [], [], OUTSIDE
    for i in range(groups):
        size, hurt, ms = int(random.integers(1e5, 3e6)), random.lognormal(sigma=1.5), random.uniform(0.2, 2)
        rows[f"g{i}"] = {
            "w8a8": (hurt * 1e-3, ms, size),
            "w4a8": (hurt * 0.05, ms * random.uniform(0.7, 1.1), size // 2),
            "w2a8": (hurt, ms * random.uniform(0.6, 1.1), size // 4),
            "float": (0.0, ms * random.uniform(0.9, 4), 4 * size),
        }
        if i % 3 != 2:
            edges.append((f"g{i}", f"g{i + 1}", 0.02, 0.03))
            continue
        readers = (f"g{i + 1}", f"sum{i + 3}") if i + 3 < groups else (OUTSIDE,)
        read = (Reading(readers, (1, 197, 768), 0.05),)
        sums.append(Value(f"sum{i}", (f"g{i}", trunk), read, True, from_float=0.04, shape=(1, 197, 768)))
        trunk = f"sum{i}"
    return problem(rows, edges, values=sums)


@pytest.mark.parametrize("seed", range(3))
def test_a_vision_transformer_is_planned_in_two_seconds(seed: int):
    of = chain(75, seed)
    eight = of.assignment({group.name: "w8a8" for group in of.groups})
    began = time.process_time()
    found = solve(of, Limits(ms=eight.ms * 0.95, size=round(eight.size * 0.6)))
    assert time.process_time() - began < 2
    assert len(set(found.precisions.values())) >= 2


def test_a_sweep_goes_from_the_fastest_to_the_most_accurate():
    of = chain(12)
    limits = Limits(size=round(0.8 * of.assignment(dict.fromkeys(of.choices, "w8a8")).size))
    plans = sweep(of, limits)
    assert len(plans) > 5
    assert all(within(plan, limits) for plan in plans)
    assert plans[0].ms == pytest.approx(solve(of, limits, "ms").ms)
    assert min(plan.loss for plan in plans) == pytest.approx(solve(of, limits).loss)


def test_a_conversion_between_islands_is_paid_where_it_happens():
    rows = {name: {"w8a8": (0.0, 1.0, 1), "float": (0.0, 1.5, 4)} for name in "abc"}
    rows["b"] = {"w8a8": (0.0, 1.0, 1), "float": (0.0, 0.8, 4)}
    edges = [("", "a", 0.0, 0.0), ("a", "b", 0.1, 0.15), ("b", "c", 0.1, 0.15), ("c", "", 0.0, 0.2)]
    of = problem(rows, edges)
    # b would be 0.2 faster in float, and its two conversions cost 0.25.
    assert solve(of, Limits(), "ms").precisions == dict.fromkeys("abc", "w8a8")
    assert solve(of, Limits(), "ms").ms == pytest.approx(3.2)
    cheaper = problem(rows, [("a", "b", 0.1, 0.05), ("b", "c", 0.1, 0.05), ("c", "", 0.0, 0.2)])
    assert solve(cheaper, Limits(), "ms").precisions["b"] == "float"


def test_what_has_no_price_is_no_choice():
    of = problem({"a": {"w8a8": (0.1, 1.0, 1), "w4a8": (0.2, 0.5, 1)}})
    unpriced = Problem(of.groups, of.losses, type(of.costs)("17", "cpu", "", 1, of.costs.sites[:1]))
    assert solve(unpriced, Limits(), "ms").precisions == {"a": "w8a8"}


def test_a_slow_solver_and_a_group_without_prices_are_not_told_as_tight_budgets(
    monkeypatch: pytest.MonkeyPatch,
):
    with pytest.raises(InfeasibleBudgetError, match="b: no precision of it has a price here"):
        solve(problem({"a": {"w8a8": (0.1, 1.0, 9)}, "b": {}}), Limits())
    known = problem({"a": {"w8a8": (0.1, 1.0, 9), "float": (0.0, 2.0, 36)}})
    given_up = SimpleNamespace(x=None, status=1)
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **__: given_up)
    with pytest.raises(InfeasibleBudgetError, match="budget of 5 ms: 20 seconds were not enough"):
        solve(known, Limits(ms=5.0))
    given_up.status = 2
    with pytest.raises(InfeasibleBudgetError, match=r"no plan keeps to it; allow more$"):
        solve(known, Limits(ms=5.0))
