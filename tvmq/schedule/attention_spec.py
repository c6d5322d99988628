"""What an attention kernel is asked for, and how it cuts the work; no word about instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.numerics import ATTENTION_MAX_KEYS, SOFTMAX_TABLE_SIZE, least_score_shift
from tvmq.passes.attention_composite import AttentionSpec as AttentionSpec
from tvmq.schedule.packed_operand import KEYS, VALUES, PackedOperand
from tvmq.schedule.space import Decisions, Space

MAX_HEAD_DIM = 1024  # |q.k| stays below 2**24, far from int32
KEY_BLOCK = 16  # keys are multiplied in vectors of so many
PAIR = 32  # and compared in pairs of vectors: keys are padded to a multiple of this
TILE_ROWS = {1: (6, 5, 4), 2: (10, 6, 5), 4: (6, 5, 4)}  # rows of a register tile, by its vectors
NARROW = 2  # vectors of heads that are no wider than that: more rows keep as many sums going
MAX_ROWS, MAX_VECTORS, MAX_ACCUMULATORS = 12, 8, 28  # of a tile in the search space
MAX_IMBALANCE = 8  # stop splitting heads at this many units per thread
MAX_BIASES = 2

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AttentionDecision:
    """How the work is cut: a register tile is rows x vectors of 16 keys; each head is split so often."""

    rows: int
    vectors: int  # 1 or even
    splits: int


def supports(spec: AttentionSpec) -> str | None:
    """Return why no attention kernel can compute spec, or None when one can."""
    least = least_score_shift(max(spec.head_dim, 1))
    fits = all(p >= 1 and spec.batch % p == 0 and h in (1, spec.heads) for p, h in spec.biases)
    masks = spec.mask is None or (spec.mask[0] in (1, spec.batch) and spec.mask[1] in (1, spec.queries))
    checks = (
        (min(spec.batch, spec.heads, spec.queries, spec.keys, spec.head_dim) >= 1, "an empty axis"),
        (spec.head_dim % 16 == 0, f"head_dim {spec.head_dim} is not a multiple of 16"),
        (spec.head_dim <= MAX_HEAD_DIM, f"head_dim {spec.head_dim} is over {MAX_HEAD_DIM}"),
        (
            spec.keys <= ATTENTION_MAX_KEYS,
            f"{spec.keys} keys are over {ATTENTION_MAX_KEYS}: the int32 sum could overflow",
        ),
        (least <= spec.score_shift <= 31, f"score_shift {spec.score_shift} is outside {least}..31"),
        (0 <= spec.numerator < 2**31, f"numerator {spec.numerator} is outside 0..2**31-1"),
        (8 <= spec.norm_shift <= 50, f"norm_shift {spec.norm_shift} is outside 8..50"),
        (spec.out_dtype in ("uint8", "int8"), f"out_dtype {spec.out_dtype!r} is not uint8 or int8"),
        (len(spec.biases) <= MAX_BIASES, f"{len(spec.biases)} biases are over {MAX_BIASES}"),
        (fits, f"biases {spec.biases} do not divide {spec.batch} batches of {spec.heads} heads"),
        (not spec.indexed or spec.queries == spec.keys, "an index serves queries and keys alike"),
        (masks, f"mask {spec.mask} is not for {spec.batch} batches of {spec.queries} queries"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def buffers(spec: AttentionSpec, *, packed: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of a kernel's parameters, in their order; packed: k and v are."""
    width, padded = spec.heads * spec.head_dim, -(-spec.keys // PAIR) * PAIR
    rows = spec.batch * spec.queries
    plain = spec.batch * spec.keys, width
    k, v = (PackedOperand.of(spec, name).shape if packed else plain for name in (KEYS, VALUES))
    found: dict[str, tuple[tuple[int, ...], str]] = {
        "q": ((rows, width), "int8"),
        "k": (k, "int8"),
        "v": (v, "int8"),
        "table": ((SOFTMAX_TABLE_SIZE,), "uint8"),
    }
    for number, sizes in enumerate(spec.biases):
        found[f"bias{number}"] = ((*sizes, spec.queries, padded), "int16")
    if spec.mask is not None:
        found["mask"] = ((*spec.mask, spec.keys), "uint8")
    if spec.indexed:
        found |= dict.fromkeys(("index", "inverse"), ((rows,), "int32"))
    found["out"] = ((rows, width), spec.out_dtype)
    return found


def default_decision(spec: AttentionSpec, threads: int, vectors: int) -> AttentionDecision:
    """Return a cut that is good untuned: the fewest rows computed twice, equal work for threads.

    vectors: how many vectors of 16 sums the machine's registers hold per row of a tile.
    """
    if spec.head_dim <= NARROW * KEY_BLOCK:
        vectors = min(vectors, NARROW)
    rows = tile_rows(spec.queries, vectors)
    splits = _splits(spec.batch * spec.heads, -(-spec.queries // rows), threads)
    return AttentionDecision(rows, vectors, splits)


def attention_space(spec: AttentionSpec, threads: int, vectors: int) -> Space:
    """Return all cuts that leave every split a tile; vectors: those of the default one."""
    default = default_decision(spec, threads, vectors)

    def valid(decisions: Decisions) -> bool:
        rows, vectors, splits = (int(decisions[name]) for name in ("rows", "vectors", "splits"))
        return rows * vectors <= MAX_ACCUMULATORS and splits <= -(-spec.queries // rows)

    splits = {1, 2, threads, 2 * threads, default.splits}
    return Space(
        {
            "rows": tuple(range(1, min(spec.queries, MAX_ROWS) + 1)),
            "vectors": (1, *range(2, MAX_VECTORS + 1, 2)),
            "splits": tuple(sorted(splits)),
        },
        asdict(default),
        valid,
    )


def speed_of(spec: AttentionSpec) -> AttentionSpec:
    """Return spec without the constants that differ from layer to layer and take no time."""
    return replace(spec, score_shift=min(spec.score_shift, 1), numerator=0, norm_shift=8, zero_point=0)


def tile_rows(queries: int, vectors: int) -> int:
    """Return the tile height that computes the fewest rows twice; all rows when there are few."""
    choices = TILE_ROWS[vectors]
    if queries <= choices[0]:
        return queries
    return min(choices, key=lambda rows: -(-queries // rows) * rows)


def pair_order(keys: int) -> list[int]:
    """Return which key lies where after two vectors of 16 were packed to one, for a multiple of PAIR keys.

    Packs work inside lanes of 128 bits: 4 keys of the first vector, then 4 of the second.
    """
    lane = [(at // 8) * 4 + at % 4 + (at % 8) // 4 * KEY_BLOCK for at in range(PAIR)]
    return [first + key for first in range(0, keys, PAIR) for key in lane]


def pack_bias(bias: Array) -> Array:
    """Return bias int16 [P, H, T, S] in pair_order, S padded to a multiple of PAIR by the least number.

    The kernels' padded keys repeat the last one: with that number added they never raise a row's maximum.
    """
    padding = -bias.shape[-1] % PAIR
    padded = np.pad(bias, ((0, 0), (0, 0), (0, 0), (0, padding)), constant_values=-(2**15))
    return np.ascontiguousarray(padded[..., pair_order(padded.shape[-1])])


def unpack_bias(packed: Array, logical_shape: Sequence[int]) -> Array:
    """Return what pack_bias was given."""
    order = np.argsort(pair_order(packed.shape[-1]))
    return np.ascontiguousarray(packed[..., order[: logical_shape[-1]]])


def _splits(heads: int, tiles: int, threads: int) -> int:
    """Return into how many groups of tiles to split each head so that threads get equal work."""
    splits = 1
    while heads * splits % threads and heads * splits < MAX_IMBALANCE * threads and splits < tiles:
        splits += 1
    return splits
