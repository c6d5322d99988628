import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq.schedule.space import Space

EVEN = Space(
    {"rows": (1, 2, 3), "outer": ("rows", "columns"), "parallel": (False, True)},
    {"rows": 2, "outer": "rows", "parallel": True},
    valid=lambda d: d["rows"] != 3 or d["outer"] == "rows",
)


def test_all_valid_decisions_are_listed_once():
    listed = [dict(d) for d in EVEN]
    assert len(listed) == 10 == len({tuple(d.values()) for d in listed})
    assert EVEN.bound == 12
    assert all(d in EVEN for d in listed)
    assert [dict(d) for d in Space()] == [{}]


def test_what_is_not_in_a_space():
    assert {"rows": 3, "outer": "columns", "parallel": True} not in EVEN
    assert {"rows": 4, "outer": "rows", "parallel": True} not in EVEN
    assert {"rows": True, "outer": "rows", "parallel": True} not in EVEN  # JSON keeps True and 1 apart
    assert {"rows": 1, "outer": "rows"} not in EVEN
    assert None not in EVEN


@given(st.integers(0, 9), st.integers(0, 1000))
def test_a_neighbour_is_another_valid_decision_nearby(index: int, seed: int):
    start = list(EVEN)[index]
    found = EVEN.neighbour(start, random.Random(seed))
    assert found in EVEN
    assert 1 <= sum(found[name] != start[name] for name in start) <= 2


def test_a_space_of_one_point_has_no_neighbours():
    alone = Space({"lanes": (16,)}, {"lanes": 16})
    assert alone.neighbour(alone.default, random.Random(0)) == {"lanes": 16}


def test_a_default_outside_the_choices_is_refused():
    with pytest.raises(ValueError, match="no valid combination"):
        Space({"lanes": (8, 16)}, {"lanes": 4})
