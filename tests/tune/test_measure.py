from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from tests.schedule.pool import pool_of
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.space import Space
from tvmq.target import load_profile
from tvmq.tune.measure import BrokenCandidateError, KernelBench

SIZE = 1 << 14
WAYS = ("right", "slow", "wrong", "unbuilt", "refused")
WEIGHT = np.arange(SIZE, dtype="int8")


def sum_of(way: str) -> tvm.tirx.PrimFunc:
    """Return x + weight, several times over for "slow", off by one in one place for "wrong"."""
    repeats, error = (20 if way == "slow" else 1), int(way == "wrong")

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((SIZE,), "int16"), weight: T.Buffer((SIZE,), "int8"), y: T.Buffer((SIZE,), "int16")):
        for _ in range(repeats):
            for i in range(SIZE):
                y[i] = x[i] + T.cast(weight[(i * 7919) % SIZE], "int16")
        y[SIZE - 1] = y[SIZE - 1] + T.int16(error)

    @T.prim_func(s_tir=True)
    def other(x: T.Buffer((SIZE,), "int8"), weight: T.Buffer((SIZE,), "int8"), y: T.Buffer((SIZE,), "int8")):
        for i in range(SIZE):
            y[i] = x[i]

    if way == "unbuilt":
        raise ValueError("no such tile")
    return other if way == "refused" else main


@pytest.fixture(scope="module")
def bench() -> Any:
    made = Kernel(("sum",), "sum", (None, None), sum_of, Space({"way": WAYS}, {"way": "right"}))
    with pool_of(1):
        yield KernelBench(Use(made, 1, (None, WEIGHT)), load_profile("native"))


def test_candidates_are_timed_against_the_default(bench: KernelBench):
    slow, default = bench.trial({"way": "slow"})
    assert slow > 3 * default > 0
    again, default, slow = (bench.final([{"way": "right"}, {"way": "slow"}])[i] for i in (1, 0, 2))
    assert max(again, default) < 3 * min(again, default)  # others may use the machine at the time
    assert slow > 3 * default


@pytest.mark.parametrize(
    ("way", "message"),
    [("wrong", "other bits"), ("unbuilt", "ValueError: no such tile"), ("refused", "Error: .*int8")],
)
def test_what_cannot_be_built_or_computes_other_bits_is_broken(bench: KernelBench, way: str, message: str):
    with pytest.raises(BrokenCandidateError, match=message) as broken:
        bench.final([{"way": "right"}, {"way": way}])
    assert broken.value.decisions == {"way": way}
    with pytest.raises(BrokenCandidateError, match=message):
        bench.trial({"way": way})


def test_constants_are_the_models_and_come_from_memory_not_the_first_caches(bench: KernelBench):
    sets = bench._sets
    assert all(np.array_equal(arguments[1].numpy(), WEIGHT) for arguments in sets)
    assert len({arguments[1].data_ptr() for arguments in sets}) == len(sets) == 16
    assert len({arguments[0].data_ptr() for arguments in sets}) == 1
    x = sets[0][0].numpy()
    assert (x.min() < -32000, x.max() > 32000) == (True, True)


def test_a_kernel_may_have_several_outputs():
    def build(second: int) -> tvm.tirx.PrimFunc:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((16,), "int8"), y: T.Buffer((16,), "int8"), z: T.Buffer((8,), "int16")):
            for i in range(16):
                y[i] = x[i]
            for i in range(8):
                z[i] = T.cast(x[i], "int16") + T.int16(second)

        return main

    made = Kernel(("two",), "two", (None,), build, Space({"second": (1, 2)}, {"second": 1}))
    with pool_of(1):
        bench = KernelBench(Use(made, 1, (None,)), load_profile("native"))
        assert min(bench.trial({"second": 1})) > 0
        with pytest.raises(BrokenCandidateError, match="other bits"):
            bench.trial({"second": 2})
