"""Register tiling shared by the matrix kernels: sums stay in registers, threads are woken once per kernel.

A kernel has two blocks. `accumulate` runs over (row, group, lane, ...reduction), where a group is 16
output channels, and keeps int32 or float32 sums; `finish` runs over (row, step of one or more groups),
turns a sum into the output and stores it. `accumulate` runs over more rows and groups than there are and
reads the last real one again for those: so the last tile is as wide as the others, its loop has no
condition, and only the stores of `finish` are guarded.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from math import ceil

from tvm.s_tir import Schedule

from tvmq.schedule.linear_spec import LANES
from tvmq.schedule.space import Decisions, Space

# TVM moves a local buffer above 1024 bytes to the heap, and its accumulators out of the registers.
MAX_ACCUMULATORS = 12
MOST_ACCUMULATORS = 15  # what a tuner may try; 16 measure 2.5 times slower

# Rows and groups that `accumulate` may run past the real ones. Tiling computes only what a tile of
# `finish` needs, so the excess costs nothing until a tile reaches into it.
SLACK_ROWS = 1024
SLACK_GROUPS = 16

# A multiply-accumulate has a latency of 4 issue slots; a 64-byte weight load from L2 takes 2, and 3 keeps
# a distance from that limit. Weights that a tile finds in L1, where the tile before had them, take 1.25.
LATENCY_SLOTS = 4
L2_LOAD_SLOTS, L1_LOAD_SLOTS = 3, 1.25
L1_WEIGHT_BYTES = 24 * 1024
MAX_STREAMS = 8  # columns of weights read side by side, beyond which the CPU prefetches them no longer
# Per tile, the loop's set-up; per sum, its epilogue. A row that may be past the last one is clipped to it.
TILE_SLOTS, SUM_SLOTS, CLIPPED_SUM_SLOTS = 4, 1.25, 2

# Below this many multiply-accumulates one core is done before a second one has taken its share.
MIN_PARALLEL_MACS = 1 << 19
MAX_SERIAL_MACS = 1 << 23  # from here on, sharing is no question for a tuner either


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How the loops of one kernel are tiled, ordered and shared between threads."""

    row_tile: int  # rows of a register tile
    column_tile: int  # groups of 16 outputs of a register tile
    outer: str = "columns"  # "columns": a weight tile stays while all rows pass; "rows": the reverse
    row_chunks: int = 1  # the rows are cut into this many parts, the units of work are part x outer tile
    parallel: bool = True
    unroll: int = 1  # reduction steps of one iteration; it divides their number

    def __post_init__(self) -> None:
        if self.outer not in ("columns", "rows"):
            raise ValueError(f"Decision: outer is {self.outer!r}, not 'columns' or 'rows'")
        if min(self.row_tile, self.column_tile, self.row_chunks, self.unroll) < 1:
            raise ValueError(f"Decision: tiles, chunks and unroll are at least 1, got {self}")
        if self.row_chunks > most_chunks(self.row_tile) or self.column_tile > SLACK_GROUPS:
            raise ValueError(f"Decision: tiles reach past the slack of {SLACK_ROWS} rows, {self}")

    @property
    def ahead(self) -> int:
        """Return how many groups further on the weights of the next tile are."""
        return self.column_tile if self.outer == "columns" else 0


def most_chunks(row_tile: int) -> int:
    """Return into how many parts rows may be cut, that tiles of so many stay within the slack."""
    # Each chunk may end in a partial tile, and the chunks in one that is empty.
    return SLACK_ROWS // row_tile - 1


@functools.cache
def choose_tiles(
    rows: int,
    groups: int,
    reduction: int,
    *,
    groups_per_step: int = 1,
    accumulators: int = MAX_ACCUMULATORS,
    widest: int = MAX_ACCUMULATORS,
    threads: int = 1,
) -> Decision:
    """Return the tiles that waste fewest issue slots on a rows x groups output; the larger one on a tie.

    reduction: accumulate steps per output element, each one instruction per group.
    accumulators: the most groups of sums a tile may hold; widest: the most groups in a row of it.
    """
    candidates = [
        (
            _slots(rows, groups, reduction, row_tile, column_tile),
            -row_tile * column_tile,
            row_tile,
            column_tile,
        )
        for row_tile in range(1, min(rows, accumulators) + 1)
        for column_tile in range(groups_per_step, min(groups, widest, MAX_STREAMS) + 1, groups_per_step)
        if row_tile * column_tile <= accumulators
    ]
    _, _, row_tile, column_tile = min(candidates)
    return Decision(
        row_tile=row_tile,
        column_tile=column_tile,
        parallel=threads > 1 and _macs(rows, groups, reduction) >= MIN_PARALLEL_MACS,
        row_chunks=min(
            row_chunks(ceil(rows / row_tile), ceil(groups / column_tile), threads), most_chunks(row_tile)
        ),
    )


def tile_space(
    default: Decision,
    rows: int,
    groups: int,
    reduction: int,
    *,
    groups_per_step: int = 1,
    widest: int = MOST_ACCUMULATORS,
    threads: int = 1,
) -> Space:
    """Return what `tile` can do with a rows x groups output; the arguments are those of choose_tiles."""

    def valid(decisions: Decisions) -> bool:
        row_tile, column_tile, chunks = (
            int(decisions[name]) for name in ("row_tile", "column_tile", "row_chunks")
        )
        most = min(ceil(rows / row_tile), most_chunks(row_tile))
        return row_tile * column_tile <= MOST_ACCUMULATORS and chunks <= most

    # A busy second core must not talk a tuner out of sharing work that is worth it.
    small = _macs(rows, groups, reduction) < MAX_SERIAL_MACS
    chunks = {1, threads, 2 * threads, 4 * threads, default.row_chunks}
    return Space(
        {
            "row_tile": tuple(range(1, min(rows, MOST_ACCUMULATORS) + 1)),
            "column_tile": tuple(range(groups_per_step, min(groups, widest) + 1, groups_per_step)),
            "outer": ("columns", "rows"),
            "row_chunks": tuple(sorted(chunks)),
            "parallel": (False, True) if threads > 1 and small else (default.parallel,),
            "unroll": tuple(steps for steps in (1, 2, 4) if reduction % steps == 0),
        },
        asdict(default),
        valid,
    )


def _macs(rows: int, groups: int, reduction: int) -> int:
    # 4 per lane as in a dot product of bytes; one step of a float kernel takes as long.
    return rows * groups * reduction * LANES * 4


def _slots(rows: int, groups: int, reduction: int, row_tile: int, column_tile: int) -> float:
    """Return the issue slots of the whole kernel."""
    sums = row_tile * column_tile
    stays = reduction * column_tile * LANES * 4 <= L1_WEIGHT_BYTES
    step = max(sums, LATENCY_SLOTS, (L1_LOAD_SLOTS if stays else L2_LOAD_SLOTS) * column_tile)
    overhead = TILE_SLOTS + sums * (CLIPPED_SUM_SLOTS if rows % row_tile else SUM_SLOTS)
    return ceil(rows / row_tile) * ceil(groups / column_tile) * (reduction * step + overhead)


def row_chunks(row_tiles: int, column_tiles: int, threads: int) -> int:
    """Return 1 when the column tiles share out evenly, else the thread count when the row tiles do better."""

    def imbalance(units: int) -> float:
        return ceil(units / threads) * threads / units

    by_rows = threads if imbalance(row_tiles) < imbalance(column_tiles) else 1
    return min(by_rows, row_tiles)


def tile(sch: Schedule, decision: Decision, *, groups_per_step: int = 1, intrinsic: str | None) -> None:
    """Tile the kernel in sch; intrinsic replaces (lane, innermost reduction), None vectorises the lanes."""
    accumulate, finish = sch.get_sblock("accumulate"), sch.get_sblock("finish")
    rows, steps = sch.get_loops(finish)
    if decision.column_tile % groups_per_step:
        raise ValueError(
            f"tile: column_tile is {decision.column_tile}, a multiple of {groups_per_step} is wanted: "
            "the kernel stores so many groups at once"
        )
    chunk, row, row_in_tile = sch.split(rows, [decision.row_chunks, None, decision.row_tile])
    column, step_in_tile = sch.split(steps, [None, decision.column_tile // groups_per_step])
    first, second = (column, row) if decision.outer == "columns" else (row, column)
    sch.reorder(chunk, first, second, row_in_tile, step_in_tile)
    sch.unroll(row_in_tile)
    sch.unroll(step_in_tile)
    # Before compute_at: with two blocks inside, TVM no longer proves that the loops are independent.
    units = sch.fuse(chunk, first)
    if decision.parallel:
        sch.parallel(units)
    sch.compute_at(accumulate, second, preserve_unit_loops=True)
    _tile_accumulators(sch, intrinsic, decision.unroll)


def _tile_accumulators(sch: Schedule, intrinsic: str | None, unroll: int) -> None:
    accumulate = sch.get_sblock("accumulate")
    spatial = 3  # row, group, lane; the rest are reductions
    reductions = sum(1 for axis in sch.get(accumulate).iter_vars if axis.iter_type == axis.CommReduce)
    loops = sch.get_loops(accumulate)[-(spatial + reductions) :]
    row, group, lane = loops[:spatial]
    outermost, inner = loops[spatial], loops[spatial + 1 :]
    sch.reorder(outermost, row, group, lane, *inner)
    sch.unroll(row)
    sch.unroll(group)
    if intrinsic is None:
        sch.vectorize(lane)
    init = sch.decompose_reduction(accumulate, outermost)
    *_, init_row, init_group, init_lane = sch.get_loops(init)
    sch.unroll(init_row)
    sch.unroll(init_group)
    sch.vectorize(init_lane)
    if unroll > 1:
        _, step = sch.split(outermost, [None, unroll])
        sch.unroll(step)
    if intrinsic is not None:
        sch.tensorize(lane, intrinsic)
