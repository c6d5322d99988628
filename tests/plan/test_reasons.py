from tests.plan.cost_tables import problem
from tvmq.plan.problem import Limits
from tvmq.plan.reasons import explained, no_slower

ROWS = {
    "norm": {"w8a8": (0.0, 0.5, 10), "float": (0.0, 0.4, 10)},
    "fc1": {"w8a8": (0.1, 1.0, 100), "w4a8": (0.3, 0.9, 50), "float": (0.0, 3.0, 400)},
    "fc2": {"w8a8": (0.1, 1.0, 100), "w4a8": (0.3, 1.2, 50), "float": (0.0, 1.05, 400)},
}
EDGES = [
    ("", "norm", 0.05, 0.0),
    ("norm", "fc1", 0.05, 0.2),
    ("fc1", "fc2", 0.1, 0.1),
    ("fc2", "", 0.0, 0.02),
]
OF = problem(ROWS, EDGES)


def test_a_site_that_integers_make_slower_stays_float_and_says_so():
    plan = no_slower(OF, OF.assignment(dict.fromkeys(ROWS, "w8a8")), Limits())
    # The norm: 0.5 ms and 0.05 for its input, against 0.4 and 0.05 for what fc1 reads.
    assert plan.precisions == {"norm": "float", "fc1": "w8a8", "fc2": "w8a8"}
    why = explained(OF, plan, Limits())
    assert why["norm"] == "float: w8a8 with its conversions is 0.1 ms slower (measured)"
    assert why["fc1"] == "w8a8: saves 2.05 ms against float, conversions included (measured)"
    assert why["fc2"] == "w8a8: saves 0.13 ms against float, conversions included (measured)"


def test_groups_that_are_slower_together_are_float_though_no_one_is_alone():
    rows = {name: {"w8a8": (0.1, 0.95, 10), "float": (0.0, 1.0, 40)} for name in "ab"}
    of = problem(rows, [("", "a", 0.05, 0.0), ("a", "b", 0.1, 0.1), ("b", "", 0.0, 0.1)])
    integers = of.assignment(dict.fromkeys("ab", "w8a8"))
    floats = of.assignment(dict.fromkeys("ab", "float"))
    assert floats.ms < integers.ms < min(of.assignment({**integers.precisions, g: "float"}).ms for g in "ab")
    assert no_slower(of, integers, Limits()) == floats
    assert no_slower(of, integers, Limits(size=50)) == integers


def test_a_budget_that_float_does_not_fit_is_named_as_the_reason():
    plan = OF.assignment({"norm": "float", "fc1": "w8a8", "fc2": "w4a8"})
    limits = Limits(size=200)
    assert no_slower(OF, plan, limits) == plan
    assert explained(OF, plan, limits)["fc2"] == (
        "w4a8: 0.07 ms slower than float, which does not fit the budget (measured)"
    )
    accurate = OF.assignment({"norm": "float", "fc1": "float", "fc2": "w8a8"})
    assert explained(OF, accurate, limits)["fc1"] == "float for accuracy: w4a8 would save 2.15 ms (measured)"
