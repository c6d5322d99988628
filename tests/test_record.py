import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tvmq.errors import UsageError
from tvmq.record import Record


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Leaf(Record):
    count: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}, a number from 0 up is wanted")


@dataclass(frozen=True, slots=True)
class Tree(Record):
    name: str
    colour: Colour
    leaves: tuple[Leaf, ...]
    best: Leaf | None
    free: Mapping[str, Any]


TREE = Tree("oak", Colour.RED, (Leaf(1), Leaf(2, 1.0)), None, {"a": [1, {"b": None}]})


def test_round_trip():
    assert Tree.from_json(TREE.to_json()) == TREE


@dataclass(frozen=True, slots=True, eq=False)
class Basket(Record):
    leaves: Mapping[str, Leaf]
    names: frozenset[str]
    numbers: npt.NDArray[np.float32]


BASKET = Basket({"a": Leaf(1)}, frozenset({"z", "b"}), np.array([[1.5, -0.0], [np.inf, 3]], np.float32))


def test_mappings_sets_and_arrays_survive_json():
    back = Basket.from_json(json.loads(json.dumps(BASKET.to_json())))
    assert (back.leaves, back.names) == (BASKET.leaves, BASKET.names)
    assert back.numbers.dtype == np.float32
    assert back.numbers.tobytes() == BASKET.numbers.tobytes()
    assert back.numbers.shape == (2, 2)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"dtype": "float32", "shape": [3], "base64": "AAAA"}, r"Basket\.numbers: no array of float32"),
        ({"dtype": "float99", "shape": [0], "base64": ""}, r"Basket\.numbers: no array of float99"),
        ({"dtype": "int8", "shape": [0]}, r"Basket\.numbers: key 'base64' is missing"),
    ],
)
def test_what_is_no_array_is_refused(numbers, message):
    with pytest.raises(UsageError, match=message):
        Basket.from_json(BASKET.to_json() | {"numbers": numbers})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colr": "red"}, r"Tree: unknown key 'colr'; known keys: \['best'"),
        ({"colour": "blue"}, r"Tree\.colour: 'blue' found, one of \['red'\] is wanted"),
        ({"name": 3}, r"Tree\.name: int 3 found, str is wanted"),
        ({"leaves": [{"count": True, "share": 0}]}, r"Tree\.leaves\[0\]\.count: bool True found, int"),
        ({"leaves": [{"count": 1}]}, r"Tree\.leaves\[0\]: key 'share' is missing"),
        ({"best": {"count": -1, "share": 1}}, r"Tree\.best: count is -1"),
        ({"free": []}, r"Tree\.free: list found, dict is wanted"),
    ],
)
def test_what_was_not_written_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Tree.from_json(TREE.to_json() | change)
