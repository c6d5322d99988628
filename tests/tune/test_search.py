import random
from typing import Any

import numpy as np

from tests.tune.synthetic import SPACE, cost, kernel
from tvmq.schedule.space import Space
from tvmq.tune.database import point
from tvmq.tune.search import LISTED, propose


def test_proposals_are_new_and_end_with_the_space():
    space = Space({"a": (1, 2, 3), "b": (False, True)}, {"a": 1, "b": True})
    chance, tried = random.Random(0), set()
    for wanted in (4, 2, 0):
        found = propose(space, tried, [], lambda _: None, 4, chance)
        assert len(found) == wanted
        tried |= {point(d) for d in found}
    assert len(tried) == 6


def test_the_first_proposals_are_near_the_default_and_at_random():
    found = propose(SPACE, set(), [], lambda _: None, 8, random.Random(1))
    distances = [sum(d[name] != SPACE.default[name] for name in d) for d in found]
    assert sum(distance <= 1 for distance in distances) >= 4
    assert max(distances) > 1


def test_a_model_that_knows_the_cost_finds_the_best_at_once():
    def predict(several: Any) -> Any:
        return np.array([cost(kernel(), d) for d in several])

    best = {"rows": 11, "columns": 5, "outer": "columns"}
    assert best in propose(SPACE, set(), [], predict, 8, random.Random(0))


def test_large_spaces_are_bred_from_not_listed():
    size = 12
    space = Space(
        {f"d{i}": tuple(range(size)) for i in range(8)},
        {f"d{i}": 0 for i in range(8)},
        valid=lambda d: sum(map(int, d.values())) < 80,
    )
    assert space.bound > LISTED

    def predict(several: Any) -> Any:
        return np.array([sum((int(v) - 9) ** 2 for v in d.values()) for d in several])

    chance, best, tried = random.Random(0), [], set()
    for _ in range(6):
        found = propose(space, tried, best, predict, 8, chance)
        assert all(d in space for d in found)
        tried |= {point(d) for d in found}
        best = sorted([*best, *found], key=lambda d: predict([d])[0])[:3]
    assert predict(best[:1])[0] <= 8 * 3  # from 648: near the best point, which has 0
