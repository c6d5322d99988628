"""Which decisions to try next: those the cost model likes best, with some chance left to the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tvmq.schedule.space import Decisions, Space
from tvmq.tune.database import Point, point

LISTED = 4096  # spaces up to this size are ranked as a whole, larger ones are bred from
GENERATIONS = 4
POPULATION = 256
PARENTS = 32
EPSILON = 0.15  # the share of a batch that is drawn at random

Predict = Callable[[Sequence[Decisions]], npt.NDArray[np.float32] | None]


def propose(
    space: Space,
    known: Iterable[Point],
    best: Sequence[Decisions],
    predict: Predict,
    count: int,
    chance: random.Random,
) -> list[Decisions]:
    """Return up to count decisions that are not known yet; fewer only where the space has no more.

    best: the fastest ones so far, fastest first. predict returns None while it knows too little: then the
    neighbours of the best and of the default are tried, and others at random.
    """
    tried = set(known)
    pool = _pool(space, best, predict, chance)
    fresh = [decisions for at, decisions in pool.items() if at not in tried]
    chance.shuffle(fresh)
    guesses = predict(fresh)
    if guesses is None:
        centre = [space.default, *best[:1]]
        near = [d for d in fresh if any(_distance(d, other) <= 1 for other in centre)]
        ranked = near[: (count + 1) // 2]
        ranked += [d for d in fresh if d not in ranked]
        return ranked[:count]
    order = np.argsort(guesses, kind="stable")
    random_picks = sum(chance.random() < EPSILON for _ in range(count))
    picks = [int(i) for i in order[: max(count - random_picks, 0)]]
    rest = sorted(set(range(len(fresh))) - set(picks))
    picks += chance.sample(rest, min(count - len(picks), len(rest)))
    return [fresh[i] for i in picks]


def _pool(
    space: Space, best: Sequence[Decisions], predict: Predict, chance: random.Random
) -> dict[Point, Decisions]:
    if space.bound <= LISTED:
        return {point(decisions): decisions for decisions in space}
    population = [space.default, *best]
    pool = {point(decisions): decisions for decisions in population}
    for _ in range(GENERATIONS):
        for _ in range(POPULATION):
            child = space.neighbour(chance.choice(population), chance)
            pool[point(child)] = child
        everyone = list(pool.values())
        guesses = predict(everyone)
        if guesses is None:
            population = chance.sample(everyone, min(PARENTS, len(everyone)))
        else:
            population = [everyone[int(i)] for i in np.argsort(guesses, kind="stable")[:PARENTS]]
    return pool


def _distance(a: Decisions, b: Decisions) -> int:
    return sum(a[name] != b[name] for name in a)
