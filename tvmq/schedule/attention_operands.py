"""The operands of an attention kernel as its dots want them: q, k and v packed, a mask as limits of scores.

row_of tells in which row of its matrix a token lies; column is where the head begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.numerics import HIDDEN_LOGIT, INTEGER_RANGE
from tvmq.schedule.attention_spec import KEY_BLOCK, PAIR
from tvmq.schedule.attention_vectors import (
    depth,
    dot,
    key_type,
    packed_words,
    pieces,
    plus_128,
    transpose_dwords,
    widened,
)
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import Buffer, Expr, concat, load, shuffle, splat, store

WIDEST = 64  # bytes of q that are moved at once

Rows = Callable[[Expr], Expr]


def load_queries(isa: Isa, q: Buffer, rows: Sequence[Expr], column: Expr, out: Buffer) -> None:
    """Fill out [rows, dim], elements of `query_type`; uint8 is q + 128."""
    dim = int(out.shape[1])
    width = math.gcd(dim, WIDEST)
    for i, row in enumerate(rows):
        with T.serial(dim // width) as step:
            signed = load(q, (row, column + step * width), width)
            store(out, (i, step * width), plus_128(signed) if isa.vnni else widened(isa, signed))


def pack_keys(
    isa: Isa, k: Buffer, row_of: Rows, column: Expr, packed: Buffer, start: Buffer, half: int
) -> None:
    """Fill packed [blocks, words of dims, 16 keys, dims of a word] and start, where every key's dots start.

    That is half, less 128 * sum(k) where q is made unsigned.
    """
    total = T.sblock_alloc_buffer((16,), "int32")
    words = int(packed.shape[1])
    chunks = words * depth(isa) // 16
    with T.serial(packed.shape[0]) as block:
        store(total, 0, splat(0, "int32x16"))
        rows = [T.bind(row_of(block * KEY_BLOCK + key)) for key in range(KEY_BLOCK)]
        with T.serial(chunks) as chunk:
            by_key = [pieces(isa, load(k, (row, column + chunk * 16), 16)) for row in rows]
            for number, piece in enumerate(zip(*by_key, strict=True)):
                _pack_piece(isa, piece, packed, (block, (chunk * len(by_key[0]) + number) * 4), total)
        constant = splat(half, "int32x16")
        store(start, block * KEY_BLOCK, constant - load(total, 0, 16) if isa.vnni else constant)


def start_keys(isa: Isa, packed: Buffer, first: Expr, start: Buffer, half: int) -> None:
    """Fill start as pack_keys does, with vpdpbusd; packed [.., words of dims, 64], from block `first` on."""
    total = T.sblock_alloc_buffer((16,), "int32")
    with T.serial(int(start.shape[0]) // KEY_BLOCK) as block:
        store(total, 0, splat(0, "int32x16"))
        with T.serial(packed.shape[1]) as word:
            keys = load(packed, (first + block, word, 0), 64)
            store(total, 0, dot(isa, load(total, 0, 16), splat(128, "uint8x64"), keys))
        store(start, block * KEY_BLOCK, splat(half, "int32x16") - load(total, 0, 16))


def _pack_piece(
    isa: Isa, keys: Sequence[Expr], packed: Buffer, place: tuple[Expr, Expr], total: Buffer
) -> None:
    """Pack four words of 16 keys; total collects 128 * sum(k)."""
    # Lane group l of stripe j holds key 4*l + j, so a 4x4 transpose inside each group of four dwords
    # puts one dword of all 16 keys, in order, into each vector.
    stripes = [T.bind(concat(keys[j::4], "int32x4")) for j in range(4)]
    for dword, vector in enumerate(transpose_dwords(stripes)):
        words = T.bind(T.reinterpret(f"{key_type(isa)}x{packed.shape[2]}", vector))
        store(packed, (place[0], place[1] + dword, 0), words)
        if isa.vnni:
            store(total, 0, dot(isa, load(total, 0, 16), splat(128, "uint8x64"), words))


def pack_values(isa: Isa, v: Buffer, row_of: Rows, column: Expr, packed: Buffer) -> None:
    """Fill packed [words of keys, dim/16, 16 dims, keys of a word], elements of `value_type`."""
    keys = depth(isa)
    order = [16 * key + lane for lane in range(16) for key in range(keys)]
    with T.serial(packed.shape[0]) as word:
        rows = [T.bind(row_of(word * keys + key)) for key in range(keys)]
        with T.serial(packed.shape[1]) as chunk:
            loads = [load(v, (row, column + chunk * 16), 16) for row in rows]
            values = shuffle(loads, order)
            store(packed, (word, chunk, 0), plus_128(values) if isa.neon else widened(isa, values))


def limit_scores(
    isa: Isa, mask: Buffer, source: tuple[Expr, Expr], natural: Buffer, limit: Buffer, place: int
) -> None:
    """Fill limit[place], int16 in pair_order: the most that scores may be, HIDDEN_LOGIT where mask is 0.

    source: batch and row of mask [.., .., keys]; padded keys are hidden. natural: scratch, int32.
    """
    keys, padded = int(mask.shape[2]), int(limit.shape[1])
    hidden, shown = HIDDEN_LOGIT, INTEGER_RANGE["int16"][1]
    full = keys // KEY_BLOCK
    if full:
        with T.serial(full) as block:
            is_hidden = load(mask, (*source, block * 16), 16).equal(splat(0, "uint8x16"))
            store(
                natural, block * 16, T.Select(is_hidden, splat(hidden, "int32x16"), splat(shown, "int32x16"))
            )
    with T.serial(padded - full * KEY_BLOCK) as lane:
        T.buffer_store(natural, const(hidden), [full * KEY_BLOCK + lane])
    with T.serial(keys - full * KEY_BLOCK) as lane:
        is_hidden = mask[(*source, full * KEY_BLOCK + lane)].equal(const(0, "uint8"))
        most = T.Select(is_hidden, const(hidden), const(shown))
        T.buffer_store(natural, most, [full * KEY_BLOCK + lane])
    with T.serial(padded // PAIR) as pair:
        halves = [load(natural, pair * PAIR + at, 16) for at in (0, 16)]
        store(limit, (place, pair * PAIR), packed_words(isa, *halves))
