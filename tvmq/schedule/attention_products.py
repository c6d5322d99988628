"""The products of an attention kernel: words of q or of softmax's weights by vectors of k or v."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.schedule import arm_intrinsics
from tvmq.schedule.attention_vectors import broadcast_word, depth, dot
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Buffer, Expr, lane_of, load, store, vector_type

LANES = 16  # sums of a vector
WORDS = 4  # that a register of 128 bits holds

Tile = list[tuple[int, int, Buffer]]  # row, vector, their 16 sums
Place = tuple[Expr, Expr]


def add_products(
    isa: Isa, tile: Tile, lefts: Buffer, word: Expr, rights: Buffer, places: Sequence[Sequence[Place]]
) -> None:
    """Add the dots of a word of lefts [rows, ...], on NEON of up to WORDS side by side, to a tile of sums.

    places: for each word, where every vector of rights is.
    """
    rows, size = sorted({i for i, _, _ in tile}), depth(isa)
    if not isa.neon:
        words = {i: T.bind(broadcast_word(isa, lefts, i, word)) for i in rows}
        vectors = [T.bind(load(rights, (*place, 0), LANES * size)) for place in places[0]]
        for i, j, acc in tile:
            store(acc, 0, dot(isa, load(acc, 0, LANES), words[i], vectors[j]))
        return
    # A word is a lane of a register; of the others one at a time is in use, so that all sums have theirs.
    kind, lanes = vector_type("int32", len(places)), LANES // isa.parts
    seen = {i: T.bind(T.reinterpret(kind, load(lefts, (i, word * size), len(places) * size))) for i in rows}
    for number, (j, _), at in product(range(len(places)), enumerate(places[0]), range(0, LANES, lanes)):
        vector = T.bind(load(rights, (*places[number][j], at * size), lanes * size))
        for i, acc in ((i, acc) for i, column, acc in tile if column == j):
            repeated = T.reinterpret(f"{lefts.dtype}x{lanes * size}", lane_of(seen[i], number, lanes))
            store(acc, at, arm_intrinsics.dot(isa, load(acc, at, lanes), vector, repeated))
