"""Integer attention as one kernel: q.k, softmax weights, p.v and the division.

Per (batch, head) the kernel packs k and v into the layout of the dot instruction, in scratch that stays
in the first two cache levels, unless the linears before it have stored them so (packed_operand). Then it
walks over tiles of query rows:

    scores   [rows, keys]  int16   dots of q and k, plus the biases, and at most the limit that a mask gives
                                   each key; in pairs of 16 keys
    weights  [rows, keys]          table[min(peak - score, 127)] by byte permutes, 64 keys at a time, left in
                                   the order of the packs
    output   [rows, dim]           dots of weights and v, times one reciprocal per row

Where the dot takes uint8 by int8, q is made unsigned by +128, which each key's own constant (half a rounding
unit - 128 * sum(k)) takes back out. Where it takes int16, all operands are widened as they are packed.

Keys are padded to pairs of 16 by repeating the last key: a repeated score cannot raise the row's
maximum, and its weight is taken to zero. The result is numerics.attention, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.numerics import HIDDEN_LOGIT, LEAST_LOGIT, SOFTMAX_TABLE_SIZE
from tvmq.schedule import packed_operand
from tvmq.schedule.attention_operands import (
    limit_scores,
    load_queries,
    pack_keys,
    pack_values,
    start_keys,
)
from tvmq.schedule.attention_products import WORDS, Tile, add_products
from tvmq.schedule.attention_spec import (
    KEY_BLOCK,
    PAIR,
    AttentionDecision,
    AttentionSpec,
    buffers,
    supports,
)
from tvmq.schedule.attention_vectors import (
    cut,
    depth,
    dot,
    key_type,
    natural_order,
    ones,
    packed_bytes,
    packed_place,
    packed_words,
    query_type,
    reduce_rows,
    saturating,
    scaled,
    valid_bytes,
    value_type,
    weight_type,
)
from tvmq.schedule.byte_vectors import lookup
from tvmq.schedule.isa import Isa
from tvmq.schedule.vectors import (
    Buffer,
    Expr,
    lanes,
    limited,
    load,
    splat,
    store,
    vector_type,
)

GROUP = 64  # keys whose weights are looked up at once: one byte vector
MOST_PACKED = 4  # vectors of sums that become one of bytes
TILE_VECTORS = {512: 4, 256: 1, 128: 1}  # per row of a tile, by the width of a register


def attention_prim_func(
    spec: AttentionSpec, decision: AttentionDecision, isa: Isa, *, packed: bool = False
) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, table[, biases...][, mask][, index, inverse], out) for a target with isa.

    q int8 [batch*queries, heads*head_dim]; k, v int8 [batch*keys, heads*head_dim], or packed as in
    packed_operand, with vpdpbusd; table uint8 [128]; biases as pack_bias gives them; mask uint8; index and
    inverse int32 [batch*queries]; out spec.out_dtype, shaped like q. ValueError where there is no kernel.
    """
    reason = supports(spec) or (packed_operand.supports(spec) if packed else None)
    if reason is not None:
        raise ValueError(f"attention kernel: {reason}; ask supports(spec) first")
    if packed and not isa.vnni:
        raise ValueError(f"attention kernel: {isa.name} has no vpdpbusd, which reads packed keys and values")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("attention")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        kinds = buffers(spec, packed=packed)
        arguments = [T.arg(name, T.buffer(*kind)) for name, kind in kinds.items()]
        _Kernel(spec, decision, isa, arguments, packed=packed).emit()
    return builder.get()


class _Kernel:
    """Emits the statements of one attention kernel; sizes and scratch buffers are its fields."""

    def __init__(
        self,
        spec: AttentionSpec,
        decision: AttentionDecision,
        isa: Isa,
        arguments: Sequence[Buffer],
        *,
        packed: bool,
    ) -> None:
        self.spec, self.isa, self.depth, self.packed = spec, isa, depth(isa), packed
        self.q, self.k, self.v, self.table, *others, self.out = arguments
        self.biases = others[: len(spec.biases)]
        self.mask = others[len(spec.biases)] if spec.mask is not None else None
        self.index = others[-2] if spec.indexed else None
        self.inputs = arguments[:-1]
        self.rows, self.vectors, self.splits = decision.rows, decision.vectors, decision.splits
        self.tiles = -(-spec.queries // self.rows)
        self.blocks = -(-spec.keys // KEY_BLOCK)
        self.words = -(-spec.keys // self.depth)
        self.chunks = spec.head_dim // 16
        self.groups = -(-spec.keys // GROUP)
        self.pairs = -(-spec.keys // PAIR)
        self.reach = spec.head_dim * 2**14 * 2.0**-spec.score_shift  # of a score

    def emit(self) -> None:
        spec, isa = self.spec, self.isa
        units = spec.batch * spec.heads * self.splits
        with T.parallel(units) as unit, T.sblock("head"):
            index = T.axis.spatial(units, unit)
            T.reads(*(b[tuple(slice(0, n) for n in b.shape)] for b in self.inputs))
            T.writes(self.out[0 : self.out.shape[0], 0 : self.out.shape[1]])
            self._allocate()
            self.head = T.bind(index // self.splits % spec.heads)
            self.batch = T.bind(index // (self.splits * spec.heads))
            self.column = T.bind(self.head * spec.head_dim)
            self._pack()
            per_split = -(-self.tiles // self.splits)
            with T.serial(per_split) as step:
                # A last tile that does not fit is moved up: it computes some rows twice, to the same bytes.
                first = (index % self.splits * per_split + step) * self.rows
                self.query = T.bind(T.min(first, spec.queries - self.rows))
                self.row_of = [T.bind(self._row(self.query + i, spec.queries)) for i in range(self.rows)]
                load_queries(isa, self.q, self.row_of, self.column, self.left_q)
                if self.mask is not None and self.mask.shape[1] > 1:
                    for i in range(self.rows):
                        limit_scores(
                            isa, self.mask, (self.mask_batch, self.query + i), self.natural, self.limit, i
                        )
                self._scores()
                self._weights()
                self._output()

    def _allocate(self) -> None:
        dim = self.spec.head_dim
        width = 16 * self.depth
        self.packed_k, self.packed_v = self.k, self.v
        if not self.packed:
            self.packed_k = T.sblock_alloc_buffer((self.blocks, dim // self.depth, width), key_type(self.isa))
            self.packed_v = T.sblock_alloc_buffer((self.words, self.chunks, width), value_type(self.isa))
        self.key_constant = T.sblock_alloc_buffer((self.blocks * KEY_BLOCK,), "int32")
        self.left_q = T.sblock_alloc_buffer((self.rows, dim), query_type(self.isa))
        fours = -(-self.rows // 4) * 4
        self.score = T.sblock_alloc_buffer((self.rows, self.pairs * PAIR), "int16")
        self.peak = T.sblock_alloc_buffer((fours,), "int32")
        self.weight = T.sblock_alloc_buffer((self.rows, self.groups * GROUP), weight_type(self.isa))
        self.reciprocal = T.sblock_alloc_buffer((fours,), "int32")
        self.start = T.sblock_alloc_buffer((fours,), "int32")  # of the sums of weight * (v + 128)
        self.total = T.sblock_alloc_buffer((self.rows, 16), "int32")
        if self.mask is not None:
            limits = self.rows if self.mask.shape[1] > 1 else 1
            self.natural = T.sblock_alloc_buffer((self.pairs * PAIR,), "int32")
            self.limit = T.sblock_alloc_buffer((limits, self.pairs * PAIR), "int16")
        # One buffer per register: a buffer over 1024 bytes would go to the heap.
        self.acc = [T.sblock_alloc_buffer((16,), "int32") for _ in range(self.rows * self.vectors)]
        self.first = T.sblock_alloc_buffer((self.rows, 16), "int32")
        self.maxima = [T.sblock_alloc_buffer((PAIR,), "int16") for _ in range(4)]
        self.sum = T.sblock_alloc_buffer((16,), "int32")

    def _row(self, token: Expr, tokens: int) -> Expr:
        """Where a token of the batch lies in q, k, v and out."""
        row = T.min(token, tokens - 1) + self.batch * tokens
        return row if self.index is None else self.index[row]

    def _pack(self) -> None:
        """Bring k and v, if not packed, and a mask of keys into scratch; padded keys repeat the last one."""

        def row_of(key: Expr) -> Expr:
            return self._row(key, self.spec.keys)

        half = 1 << (self.spec.score_shift - 1) if self.spec.score_shift > 0 else 0
        head = self.batch * self.spec.heads + self.head if self.packed else 0
        self.first_block, self.first_word = (T.bind(head * count) for count in (self.blocks, self.words))
        if self.packed:
            start_keys(self.isa, self.k, self.first_block, self.key_constant, half)
        else:
            pack_keys(self.isa, self.k, row_of, self.column, self.packed_k, self.key_constant, half)
            pack_values(self.isa, self.v, row_of, self.column, self.packed_v)
        if self.mask is not None:
            self.mask_batch = 0 if self.mask.shape[0] == 1 else self.batch
            if self.mask.shape[1] == 1:
                limit_scores(self.isa, self.mask, (self.mask_batch, 0), self.natural, self.limit, 0)

    def _scores(self) -> None:
        if self.vectors == 1:
            with T.serial(self.pairs) as pair:
                self._score_pair(pair * 2)
            return
        full, rest = divmod(self.blocks, self.vectors)
        if full:
            with T.serial(full) as group:
                self._score_tile(group * self.vectors, self.vectors)
        if rest:
            self._score_tile(full * self.vectors, rest)

    def _score_pair(self, block: Expr) -> None:
        """Scores of all rows against 32 keys, one vector after the other."""
        tile = self._score_sums(block, 1)
        for i, _, acc in tile:
            store(self.first, (i, 0), load(acc, 0, 16))
        self._score_sums(T.min(block + 1, self.blocks - 1), 1)
        for i, _, acc in tile:
            self._store_scores(i, block * 16, load(self.first, (i, 0), 16), load(acc, 0, 16))

    def _score_tile(self, block: Expr, vectors: int) -> None:
        """Scores of all rows of the tile against vectors * 16 keys; a last odd vector is its own pair."""
        for i, j, acc in self._score_sums(block, vectors):
            if j % 2 == 0:
                other = self.acc[i * vectors + min(j + 1, vectors - 1)]
                self._store_scores(i, (block + j) * 16, load(acc, 0, 16), load(other, 0, 16))

    def _score_sums(self, block: Expr, vectors: int) -> Tile:
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for _, j, acc in tile:
            store(acc, 0, load(self.key_constant, (block + j) * 16, 16))
        together = WORDS if self.isa.neon else 1
        with T.serial(self.spec.head_dim // (self.depth * together)) as step:
            words = [step * together + number for number in range(together)]
            first = self.first_block + block
            places = [[(first + j, word) for j in range(vectors)] for word in words]
            add_products(self.isa, tile, self.left_q, words[0], self.packed_k, places)
        return tile

    def _store_scores(self, i: int, key: Expr, first: Expr, second: Expr) -> None:
        """Scores of row i and 32 keys from key on: shifted, plus the biases, limited by the mask."""
        shift = T.shift_right if self.spec.score_shift >= 0 else T.shift_left
        by = splat(abs(self.spec.score_shift), "int32x16")
        score = T.bind(packed_words(self.isa, T.bind(shift(first, by)), T.bind(shift(second, by))))
        for bias in self.biases:
            period, heads = int(bias.shape[0]), int(bias.shape[1])
            batch = 0 if period == 1 else self.batch % period
            place = (batch, 0 if heads == 1 else self.head, self.query + i, key)
            score = saturating("add", score, load(bias, place, PAIR))
        if self.biases or self.reach > -LEAST_LOGIT:
            score = T.max(score, splat(LEAST_LOGIT, "int16x32"))
        if self.mask is not None:
            score = T.min(score, load(self.limit, (i if self.mask.shape[1] > 1 else 0, key), PAIR))
        store(self.score, (i, key), score)

    def _weights(self) -> None:
        """weight = table[min(peak - score, 127)], and numerator // sum(weight) of each row."""
        for first in range(0, self.rows, 4):
            self._peaks(first)
        with T.serial(self.rows) as i:
            peak = T.bind(T.broadcast(T.cast(self.peak[i], "int16"), PAIR))
            store(self.sum, 0, splat(0, "int32x16"))
            full, rest = divmod(self.spec.keys, GROUP)
            if full:
                with T.serial(full) as group:
                    self._weight_group(i, peak, group * GROUP, GROUP)
            if rest:
                self._weight_group(i, peak, full * GROUP, rest)
            store(self.total, (i, 0), load(self.sum, 0, 16))
        for first in range(0, self.rows, 4):
            self._reciprocals(first)

    def _four(self, first: int) -> list[int]:
        return [min(first + at, self.rows - 1) for at in range(4)]

    def _peaks(self, first: int) -> None:
        """peak[first..first+3]: the largest scores of four rows."""
        rows = self._four(first)
        for maximum in self.maxima:
            store(maximum, 0, splat(-(2**15), "int16x32"))
        with T.serial(self.pairs) as pair:
            for i, maximum in zip(rows, self.maxima, strict=True):
                score = load(self.score, (i, pair * PAIR), PAIR)
                store(maximum, 0, T.max(load(maximum, 0, PAIR), score))
        wide = [T.bind(T.reinterpret("int32x16", load(maximum, 0, PAIR))) for maximum in self.maxima]

        def larger(a: Expr, b: Expr) -> Expr:
            words = vector_type("int16", 2 * lanes(a))
            both = T.max(T.reinterpret(words, a), T.reinterpret(words, b))
            return T.reinterpret(vector_type("int32", lanes(a)), both)

        pairs = reduce_rows(wide, larger)
        low = T.shift_right(T.shift_left(pairs, splat(16, "int32x4")), splat(16, "int32x4"))
        store(self.peak, first, T.max(low, T.shift_right(pairs, splat(16, "int32x4"))))

    def _reciprocals(self, first: int) -> None:
        """reciprocal[first..first+3]: floats of 64 bits divide these integers exactly."""
        totals = [T.bind(load(self.total, (i, 0), 16)) for i in self._four(first)]
        total = reduce_rows(totals, lambda a, b: a + b)
        quotient = splat(float(self.spec.numerator), "float64x4") / T.cast(total, "float64x4")
        reciprocal = T.cast(quotient, "int32x4")
        if self.isa.neon:
            store(self.start, first, total * splat(-128, "int32x4"))
        if self.mask is not None:  # a row that sees no key has the weights of one that sees all
            shown = load(self.peak, first, 4) > splat(HIDDEN_LOGIT, "int32x4")
            reciprocal = T.Select(shown, reciprocal, splat(0, "int32x4"))
        store(self.reciprocal, first, reciprocal)

    def _weight_group(self, i: Expr, peak: Expr, key: Expr, count: int) -> None:
        pairs = -(-count // PAIR)
        scores = [load(self.score, (i, key + at * PAIR), PAIR) for at in range(pairs)]
        distances = [T.bind(saturating("sub", peak, score)) for score in scores]
        clipped = packed_bytes(self.isa, distances[0], distances[-1])
        index = T.bind(T.min(clipped, splat(SOFTMAX_TABLE_SIZE - 1, "uint8x64")))
        weights = lookup(self.isa, self.table, index, GROUP)
        if count < GROUP:
            valid = T.bitwise_and(T.reinterpret("int32x16", weights), valid_bytes(count))
            weights = T.reinterpret("uint8x64", valid)
        stored = T.bind(weights if self.isa.quads else T.cast(weights, "int16x64"))
        store(self.weight, (i, key), stored)
        for at in range(0, GROUP, 16 * self.depth):
            words = cut(stored, at, 16 * self.depth)
            store(self.sum, 0, dot(self.isa, load(self.sum, 0, 16), words, ones(self.isa)))

    def _output(self) -> None:
        parts = -(-self.chunks // self.vectors)
        bounds = [self.chunks * part // parts for part in range(parts + 1)]
        for first, last in pairwise(bounds):
            for at in range(first, last, MOST_PACKED):
                self._output_tile(at, min(last - at, MOST_PACKED))

    def _output_tile(self, first: int, vectors: int) -> None:
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for i, _, acc in tile:
            store(acc, 0, T.broadcast(self.start[i], 16) if self.isa.neon else splat(0, "int32x16"))
        columns = [first + j for j in range(vectors)]
        done = self._whole_groups(tile, columns) if self.isa.neon else 0
        per_quad = 4 // self.depth
        with T.serial(self.words - done) as left:
            word = done + left
            place = packed_place(word // per_quad) * per_quad + word % per_quad
            places = [[(self.first_word + word, column) for column in columns]]
            add_products(self.isa, tile, self.weight, place, self.packed_v, places)
        dtype = self.spec.out_dtype
        for i in range(self.rows):
            factor = T.bind(self.reciprocal[i])
            sums = [load(self.acc[i * vectors + j], 0, 16) for j in range(vectors)]
            scale = factor, self.spec.norm_shift, self.spec.zero_point
            divided = [T.bind(scaled(self.isa, total, *scale)) for total in sums]
            halves = [
                T.bind(packed_words(self.isa, divided[j], divided[min(j + 1, vectors - 1)]))
                for j in range(0, vectors, 2)
            ]
            packed = T.bind(limited(packed_bytes(self.isa, halves[0], halves[-1], dtype), self.spec.clip))
            values = T.reinterpret(f"{dtype}x{16 * vectors}", natural_order(packed, vectors))
            store(self.out, (self.row_of[i], self.column + first * 16), values)

    def _whole_groups(self, tile: Tile, columns: Sequence[Expr]) -> int:
        """Add the dots of all whole groups of keys, some words at once; return how many words these are."""
        words = GROUP // self.depth
        if groups := self.words // words:
            with T.grid(groups, words // WORDS) as (group, step):
                first = group * words
                # packed_place puts the words first + step, and every fourth after it, side by side.
                own = [first + step + WORDS * number for number in range(WORDS)]
                places = [[(word, column) for column in columns] for word in own]
                add_products(self.isa, tile, self.weight, first + step * WORDS, self.packed_v, places)
        return groups * words
