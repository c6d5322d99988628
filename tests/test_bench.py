import gc

import pytest

from tvmq import bench
from tvmq.errors import UsageError


def test_candidates_take_turns_in_a_rotating_order():
    order = []
    timings = bench.interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=0
    )
    assert order == ["a", "b", "b", "a"]
    assert [t.n for t in timings.values()] == [2, 2]


def test_warmup_is_not_counted():
    calls = []
    assert bench.measure(lambda: calls.append(1), rounds=3, warmup=2).n == 3
    assert len(calls) == 5


def test_percentiles_interpolate():
    timing = bench.Timing.of_seconds([0.003, 0.001, 0.002])
    assert (timing.median_ms, timing.p10_ms, timing.p90_ms) == pytest.approx((2.0, 1.2, 2.8))
    assert str(timing) == "2.000 ms (p10 1.200, p90 2.800, n 3)"


def test_collection_is_off_meanwhile_and_on_again_after_an_error():
    def candidate():
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        bench.measure(candidate)
    assert gc.isenabled()


def test_every_round_begins_one_candidate_further():
    assert [bench.rotated(["a", "b", "c"], number) for number in (-1, 0, 1)] == [
        ["c", "a", "b"],
        ["a", "b", "c"],
        ["b", "c", "a"],
    ]


def test_nothing_to_time_is_an_error():
    with pytest.raises(UsageError, match="at least one candidate and one round are wanted"):
        bench.interleave({})
