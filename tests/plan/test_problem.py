from tests.plan.cost_tables import problem
from tvmq.plan.cost_table import CostTable, SiteCost
from tvmq.plan.groups import SiteGroup
from tvmq.plan.problem import Limits, Moment, Problem, within
from tvmq.plan.values import OUTSIDE, Reading, Value

ROWS = {name: {"w8a8": (0.1, 1.0, 10), "float": (0.0, 3.0, 40)} for name in "abc"}
VALUE = Value("v", ("a",), (Reading(("b", "c"), (25,)), Reading((OUTSIDE,), (1,))), shape=(25,))


def memory(*floats: str, made: str = "") -> int:
    of = problem(ROWS, values=[VALUE], moments=[Moment(7, {"v": 25}, {"v": 100}, made)])
    return of.assignment(dict.fromkeys(ROWS, "w8a8") | dict.fromkeys(floats, "float")).memory - 7


def test_a_value_that_lives_as_integers_and_as_floats_counts_as_both():
    assert memory() == 25 + 4  # and what a view of it hands out in float
    assert memory("c") == 25 + 100 + 4
    assert memory("a", "b", "c") == 100
    assert memory("a") == 25 + 4
    assert memory("a", made="v") == 25 + 4 + 100  # while it is quantized
    assert memory(made="v") == 25 + 4


def test_what_stays_float_without_a_choice_costs_too():
    sites = (
        SiteCost("a", "w8a8", 1.0, 0, 10, "measured"),
        SiteCost("softmax", "float", 0.5, 0, 3, "measured"),
    )
    table = CostTable("17", "cpu", "", 1, sites, (), 0.25, 100)
    of = Problem((SiteGroup("a", ("a",), ("w8a8", "float")),), {("a", "w8a8"): 0.1}, table)
    plan = of.assignment({"a": "w8a8"})
    assert (plan.ms, plan.size) == (1.75, 113)
    assert of.choices == {"a": {"w8a8": (0.1, 1.0, 10)}}


def test_limits_leave_room_for_rounding_alone():
    plan = problem(ROWS).assignment(dict.fromkeys(ROWS, "w8a8"))
    assert within(plan, Limits(ms=3.0 - 1e-7, size=30))
    assert not within(plan, Limits(ms=2.999))
    assert str(Limits(ms=3.0, memory=2_000_000)) == "3 ms and 2 MB of activations"
