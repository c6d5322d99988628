from tests.plan.cost_tables import problem
from tvmq.plan.records import choices_of, evaluated_of


def test_a_group_is_told_with_what_it_would_cost_in_float():
    of = problem({"a": {"w8a8": (0.1, 1.0, 10), "float": (0.0, 3.0, 40)}, "b": {"w4a8": (0.2, 1.0, 5)}})
    plan = of.assignment({"a": "w8a8", "b": "w4a8"})
    a, b = choices_of(of, plan, {"a": "because", "b": "why not"})
    assert (a.ms, a.float_ms, a.size, a.loss, a.sources) == (1.0, 3.0, 10, 0.1, ("measured",))
    assert (b.float_ms, b.reason, b.precision) == (None, "why not", "w4a8")


def test_without_a_search_nothing_was_evaluated():
    assert evaluated_of(None)[:2] == ((), ())
