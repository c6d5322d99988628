"""Tiles change the speed and nothing else; the default ones waste little."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, VNNI_NAMES
from tests.schedule.linear_cases import check, compiled
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.register_tiles import Decision, choose_tiles, tile_space
from tvmq.schedule.x86_linear import linear_space


@pytest.mark.isa(*ISA["avx512_vnni"].features)
@pytest.mark.parametrize(
    "decision",
    [
        Decision(row_tile=5, column_tile=2, outer="rows", parallel=False),
        Decision(row_tile=4, column_tile=3, outer="rows", row_chunks=3),
        Decision(row_tile=12, column_tile=1, row_chunks=7),
        Decision(row_tile=1, column_tile=12),
        Decision(row_tile=16, column_tile=1, unroll=7),
    ],
)
def test_no_decision_changes_the_numbers(decision: Decision) -> None:
    spec = LinearSpec(rows=41, inputs=28, outputs=100, out_dtype="int16", residual=True)
    check(compiled(spec, "avx512_vnni", decision), spec)


def _tile(rows: int, groups: int, reduction: int) -> tuple[int, int]:
    decision = choose_tiles(rows, groups, reduction, groups_per_step=1 if groups % 4 else 4)
    return decision.row_tile, decision.column_tile


def test_default_tiles_waste_little() -> None:
    for rows, outputs in [(197, 384), (197, 1000), (257, 768), (50, 96), (1, 1000), (3136, 288)]:
        decision = choose_tiles(rows, -(-outputs // 16), 96)
        done = [
            -(-n // t) * t for n, t in ((rows, decision.row_tile), (-(-outputs // 16), decision.column_tile))
        ]
        assert done[0] * done[1] <= 1.03 * rows * -(-outputs // 16)
    # Weights that stay in L1 allow lower tiles; those that divide the rows are cheaper.
    assert _tile(196, 24, 96) == (2, 4)
    assert _tile(197, 24, 96) == (3, 4)
    assert _tile(196, 24, 384) == (3, 4)
    assert _tile(12544, 1, 8) == (8, 1)
    assert _tile(1, 63, 512) == (1, 7)
    # 5 column tiles do not share out between 2 threads, 66 row tiles do.
    assert choose_tiles(197, 20, 96, threads=2).row_chunks == 2
    assert choose_tiles(197, 24, 96, threads=2).row_chunks == 1
    assert not choose_tiles(1, 1, 96, threads=2).parallel


def test_a_decision_that_no_kernel_can_follow_is_refused() -> None:
    with pytest.raises(ValueError, match="outer is 'row'"):
        Decision(row_tile=3, column_tile=4, outer="row")
    with pytest.raises(ValueError, match="at least 1"):
        Decision(row_tile=0, column_tile=4)
    with pytest.raises(ValueError, match="past the slack"):
        Decision(row_tile=12, column_tile=1, row_chunks=100)


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 80), st.integers(1, 800), st.integers(1, 256))
@example(3136, 1, 16, 128)  # the row tiles share out between more threads than the slack has room for
def test_the_default_can_be_built_and_tuned_for_any_number_of_threads(
    rows: int, groups: int, reduction: int, threads: int
) -> None:
    default = choose_tiles(rows, groups, reduction, threads=threads)
    space = tile_space(default, rows, groups, reduction, threads=threads)
    chance = random.Random(0)
    for _ in range(10):
        Decision(**space.neighbour(space.default, chance))
    assert any(d["row_chunks"] == default.row_chunks for d in itertools.islice(space, 10_000))


@pytest.mark.parametrize("isa", VNNI_NAMES)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_every_point_of_a_space_gives_the_same_numbers(isa: str, data: st.DataObject) -> None:
    outputs = data.draw(st.sampled_from([1, 64, 100]))
    rows, inputs = data.draw(st.sampled_from([(1, 4), (37, 24), (7, 16)]))
    spec = LinearSpec(rows=rows, inputs=inputs, outputs=outputs, out_dtype="uint8", table=True)
    space = linear_space(spec, 2, ISA[isa])
    check(compiled(spec, isa, Decision(**data.draw(st.sampled_from(list(space))))), spec)
