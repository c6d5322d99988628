from pathlib import Path

import pytest

from tvmq.errors import UsageError
from tvmq.plan.options import Budget, merged
from tvmq.plan.problem import Limits


def test_megabytes_are_millions_of_bytes_and_a_budget_may_want_nothing():
    budget = Budget(max_latency_ms=2.5, max_size_mb=1.5, log="here")
    assert budget.limits == Limits(ms=2.5, size=1_500_000)
    assert budget.path == Path("here")
    assert Budget(minutes=3).wants_nothing
    assert not Budget(max_drop=0).wants_nothing
    assert not budget.wants_nothing


def test_keywords_and_a_budget_go_together_but_not_twice():
    assert merged(Budget(log="here"), max_drop=1, minutes=None) == Budget(log="here", max_drop=1)
    assert merged(None, max_size_mb=3) == Budget(max_size_mb=3)
    with pytest.raises(UsageError, match=r"max_drop=1: is in budget too, 2; give it once"):
        merged(Budget(max_drop=2), max_drop=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_latency_ms": 0}, "max_latency_ms=0: a number over 0 is wanted"),
        ({"max_size_mb": "3"}, "max_size_mb='3': a number over 0 is wanted"),
        ({"minutes": float("nan")}, "minutes=nan: a number over 0"),
        ({"max_drop": -1}, "max_drop=-1: a number from 0 is wanted"),
        ({"evaluations": 0}, "evaluations=0: a whole number from 1 is wanted"),
    ],
)
def test_what_is_no_budget_is_a_sentence(values, said: str):
    with pytest.raises(UsageError, match=said):
        Budget(**values)
