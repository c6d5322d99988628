"""Integer attention as one x86 kernel: q.k, softmax weights, p.v and the division.

Per (batch, head) the kernel packs k and v into the layout of the dot instruction, in scratch that stays
in the first two cache levels, then walks over tiles of query rows:

    scores   [rows, keys]  int32   dots of q and k, plus the biases, and at most the limit that a mask gives
                                   each key
    weights  [rows, keys]          table[min(rowmax - score, 127)] by byte permutes, 64 keys at a time
    output   [rows, dim]           dots of weights and v, times one reciprocal per row

Where the dot takes uint8 by int8, q is made unsigned by +128, which each key's own constant (half a rounding
unit - 128 * sum(k)) takes back out. Where it takes int16, all operands are widened as they are packed.

Keys are padded to blocks of 16 by repeating the last key: a repeated score cannot raise the row's
maximum, and its weight is taken to zero. The result is numerics.attention, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.numerics import HIDDEN_LOGIT, INTEGER_RANGE, SOFTMAX_TABLE_SIZE
from tvmq.schedule.attention_spec import KEY_BLOCK, AttentionDecision, AttentionSpec, supports
from tvmq.schedule.vectors import Buffer, Expr, concat, load, reduce_lanes, shuffle, splat, store
from tvmq.schedule.x86_intrinsics import lookup
from tvmq.schedule.x86_isa import Isa
from tvmq.schedule.x86_vectors import (
    broadcast_word,
    clipped_bytes,
    cut,
    depth,
    dot,
    left,
    ones,
    pieces,
    right,
    transpose_dwords,
    valid_bytes,
    widened,
)

GROUP = 64  # keys whose weights are looked up at once: one byte vector
TILE_VECTORS = {512: 4, 256: 1, 128: 1}  # per row of a tile, by the width of a register

Tile = list[tuple[int, int, Buffer]]  # row, vector, their 16 sums
Places = list[tuple[Expr, ...]]


def attention_prim_func(spec: AttentionSpec, decision: AttentionDecision, isa: Isa) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, table[, biases...][, mask][, index, inverse], out) for a target with isa.

    q int8 [batch*queries, heads*head_dim]; k, v int8 [batch*keys, heads*head_dim]; table uint8 [128]; biases
    as pack_bias gives them; mask uint8; index, inverse int32 [batch*queries]; out spec.out_dtype, shaped like
    q. Raises ValueError where supports(spec) gives a reason.
    """
    reason = supports(spec)
    if reason is not None:
        raise ValueError(f"attention kernel: {reason}; ask supports(spec) first")
    width, padded = spec.heads * spec.head_dim, -(-spec.keys // KEY_BLOCK) * KEY_BLOCK
    shapes = {
        "q": ((spec.batch * spec.queries, width), "int8"),
        "k": ((spec.batch * spec.keys, width), "int8"),
        "v": ((spec.batch * spec.keys, width), "int8"),
        "table": ((SOFTMAX_TABLE_SIZE,), "uint8"),
    }
    for number, sizes in enumerate(spec.biases):
        shapes[f"bias{number}"] = ((*sizes, spec.queries, padded), "int16")
    if spec.mask is not None:
        shapes["mask"] = ((*spec.mask, spec.keys), "uint8")
    if spec.indexed:
        shapes |= dict.fromkeys(("index", "inverse"), ((spec.batch * spec.queries,), "int32"))
    shapes["out"] = ((spec.batch * spec.queries, width), spec.out_dtype)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("attention")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        buffers = {name: T.arg(name, T.buffer(*buffer)) for name, buffer in shapes.items()}
        _Kernel(spec, decision, isa, list(buffers.values())).emit()
    return builder.get()


class _Kernel:
    """Emits the statements of one attention kernel; sizes and scratch buffers are its fields."""

    def __init__(
        self, spec: AttentionSpec, decision: AttentionDecision, isa: Isa, buffers: Sequence[Buffer]
    ) -> None:
        self.spec, self.isa, self.depth = spec, isa, depth(isa)
        self.q, self.k, self.v, self.table, *others, self.out = buffers
        self.biases = others[: len(spec.biases)]
        self.mask = others[len(spec.biases)] if spec.mask is not None else None
        self.index = others[-2] if spec.indexed else None
        self.inputs = buffers[:-1]
        self.rows, self.vectors, self.splits = decision.rows, decision.vectors, decision.splits
        self.tiles = -(-spec.queries // self.rows)
        self.blocks = -(-spec.keys // KEY_BLOCK)
        self.words = -(-spec.keys // self.depth)
        self.chunks = spec.head_dim // 16
        self.groups = -(-spec.keys // GROUP)

    def emit(self) -> None:
        spec = self.spec
        units = spec.batch * spec.heads * self.splits
        with T.parallel(units) as unit, T.sblock("head"):
            index = T.axis.spatial(units, unit)
            T.reads(*(b[tuple(slice(0, n) for n in b.shape)] for b in self.inputs))
            T.writes(self.out[0 : self.out.shape[0], 0 : self.out.shape[1]])
            self._allocate()
            self.head = T.bind(index // self.splits % spec.heads)
            self.batch = T.bind(index // (self.splits * spec.heads))
            self.column = T.bind(self.head * spec.head_dim)
            self._pack_keys()
            self._pack_values()
            if self.mask is not None and self.mask.shape[1] == 1:
                self._limit(self.mask, 0, 0)
            per_split = -(-self.tiles // self.splits)
            with T.serial(per_split) as step:
                # A last tile that does not fit is moved up: it computes some rows twice, to the same bytes.
                first = (index % self.splits * per_split + step) * self.rows
                self.query = T.bind(T.min(first, spec.queries - self.rows))
                self.row_of = [T.bind(self._row(self.query + i, spec.queries)) for i in range(self.rows)]
                self._load_queries()
                if self.mask is not None and self.mask.shape[1] > 1:
                    for i in range(self.rows):
                        self._limit(self.mask, i, self.query + i)
                self._scores()
                self._weights()
                self._output()

    def _allocate(self) -> None:
        dim = self.spec.head_dim
        operand, width = right(self.isa), 16 * self.depth
        self.packed_k = T.sblock_alloc_buffer((self.blocks, dim // self.depth, width), operand)
        self.packed_v = T.sblock_alloc_buffer((self.words, self.chunks, width), operand)
        self.key_constant = T.sblock_alloc_buffer((self.blocks * KEY_BLOCK,), "int32")
        self.left_q = T.sblock_alloc_buffer((self.rows, dim), left(self.isa))
        self.score = T.sblock_alloc_buffer((self.rows, self.blocks * KEY_BLOCK), "int32")
        self.weight = T.sblock_alloc_buffer((self.rows, self.groups * GROUP), left(self.isa))
        self.row_max = T.sblock_alloc_buffer((self.rows, 16), "int32")
        self.reciprocal = T.sblock_alloc_buffer((self.rows,), "int32")
        self.total = T.sblock_alloc_buffer((16,), "int32")
        if self.mask is not None:
            limits = self.rows if self.mask.shape[1] > 1 else 1
            self.limit = T.sblock_alloc_buffer((limits, self.blocks * KEY_BLOCK), "int32")
        # One buffer per register: a buffer over 1024 bytes would go to the heap.
        count = self.rows * self.vectors
        self.acc = [T.sblock_alloc_buffer((16,), "int32") for _ in range(count)]
        self.maxima = [T.sblock_alloc_buffer((16,), "int32") for _ in range(self.rows)]

    def _row(self, token: Expr, tokens: int) -> Expr:
        """Where a token of the batch lies in q, k, v and out."""
        row = T.min(token, tokens - 1) + self.batch * tokens
        return row if self.index is None else self.index[row]

    def _pack_keys(self) -> None:
        """packed_k [block, words of dims, 16 keys, dims of a word], and what every key's dots start from."""
        with T.serial(self.blocks) as block:
            store(self.total, 0, splat(0, "int32x16"))
            rows = [T.bind(self._row(block * 16 + key, self.spec.keys)) for key in range(16)]
            with T.serial(self.chunks) as chunk:
                loads = [load(self.k, (row, self.column + chunk * 16), 16) for row in rows]
                by_key = [pieces(self.isa, each) for each in loads]
                for number, piece in enumerate(zip(*by_key, strict=True)):
                    self._pack_piece(block, chunk * len(by_key[0]) + number, piece)
            constant = splat(self._half(), "int32x16")
            if self.isa.vnni:
                constant = constant - load(self.total, 0, 16)
            store(self.key_constant, block * 16, constant)

    def _pack_piece(self, block: Expr, piece: Expr, keys: Sequence[Expr]) -> None:
        """Pack four words of 16 keys; total collects 128 * sum(k) where q is made unsigned."""
        # Lane group l of stripe j holds key 4*l + j, so a 4x4 transpose inside each group of four dwords
        # puts one dword of all 16 keys, in order, into each vector.
        stripes = [T.bind(concat(keys[j::4], "int32x4")) for j in range(4)]
        for dword, vector in enumerate(transpose_dwords(stripes)):
            packed = T.bind(T.reinterpret(f"{right(self.isa)}x{16 * self.depth}", vector))
            store(self.packed_k, (block, piece * 4 + dword, 0), packed)
            if self.isa.vnni:
                store(self.total, 0, self._dot(load(self.total, 0, 16), splat(128, "uint8x64"), packed))

    def _dot(self, acc: Expr, first: Expr, second: Expr) -> Expr:
        return dot(self.isa, acc, first, second)

    def _half(self) -> int:
        return 1 << (self.spec.score_shift - 1) if self.spec.score_shift > 0 else 0

    def _pack_values(self) -> None:
        """packed_v [words of keys, dim/16, 16 dims, keys of a word]; a padded key repeats the last one."""
        order = [16 * key + lane for lane in range(16) for key in range(self.depth)]
        with T.serial(self.words) as word:
            rows = [T.bind(self._row(word * self.depth + key, self.spec.keys)) for key in range(self.depth)]
            with T.serial(self.chunks) as chunk:
                loads = [load(self.v, (row, self.column + chunk * 16), 16) for row in rows]
                store(self.packed_v, (word, chunk, 0), widened(self.isa, shuffle(loads, order)))

    def _limit(self, mask: Buffer, place: int, row: Expr) -> None:
        """limit[place]: the most that the scores of a mask's row may be, HIDDEN_LOGIT where it hides."""
        most = INTEGER_RANGE["int32"][1]
        batch = 0 if mask.shape[0] == 1 else self.batch
        full, rest = divmod(self.spec.keys, KEY_BLOCK)
        if full:
            with T.serial(full) as block:
                hidden = load(mask, (batch, row, block * 16), 16).equal(splat(0, "uint8x16"))
                limit = T.Select(hidden, splat(HIDDEN_LOGIT, "int32x16"), splat(most, "int32x16"))
                store(self.limit, (place, block * 16), limit)
        if rest:
            with T.serial(KEY_BLOCK) as lane:
                seen = mask[batch, row, T.min(full * 16 + lane, self.spec.keys - 1)]
                limit = T.Select(seen.equal(const(0, "uint8")), const(HIDDEN_LOGIT), const(most))
                T.buffer_store(self.limit, limit, [place, full * 16 + lane])

    def _load_queries(self) -> None:
        for i in range(self.rows):
            with T.serial(self.chunks) as chunk:
                signed = load(self.q, (self.row_of[i], self.column + chunk * 16), 16)
                flipped = T.bitwise_xor(T.reinterpret("uint8x16", signed), splat(128, "uint8x16"))
                store(self.left_q, (i, chunk * 16), flipped if self.isa.vnni else widened(self.isa, signed))

    def _scores(self) -> None:
        full, rest = divmod(self.blocks, self.vectors)
        for i in range(self.rows):
            store(self.maxima[i], 0, splat(-(2**31), "int32x16"))
        if full:
            with T.serial(full) as group:
                self._score_tile(group * self.vectors, self.vectors)
        if rest:
            self._score_tile(full * self.vectors, rest)
        for i in range(self.rows):
            store(self.row_max, (i, 0), load(self.maxima[i], 0, 16))

    def _score_tile(self, block: Expr, vectors: int) -> None:
        """Scores of all rows of the tile against vectors * 16 keys, and their running maxima."""
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for _, j, acc in tile:
            store(acc, 0, load(self.key_constant, (block + j) * 16, 16))
        with T.serial(self.spec.head_dim // self.depth) as word:
            places = [(block + j, word, 0) for j in range(vectors)]
            self._products(tile, self.left_q, word, self.packed_k, places)
        for i, j, acc in tile:
            score = T.bind(self._finished(load(acc, 0, 16), i, (block + j) * 16))
            store(self.score, (i, (block + j) * 16), score)
            store(self.maxima[i], 0, T.max(load(self.maxima[i], 0, 16), score))

    def _products(self, tile: Tile, lefts: Buffer, word: Expr, rights: Buffer, places: Places) -> None:
        """Add the dots of one word to all sums of a tile; places: where each vector of `rights` is."""
        words = [T.bind(broadcast_word(self.isa, lefts, i, word)) for i in range(self.rows)]
        vectors = [T.bind(load(rights, place, 16 * self.depth)) for place in places]
        for i, j, acc in tile:
            store(acc, 0, self._dot(load(acc, 0, 16), words[i], vectors[j]))

    def _finished(self, product: Expr, i: int, key: Expr) -> Expr:
        """Scores of row i and 16 keys from key on: shifted, plus the biases, limited by the mask."""
        shift = T.shift_right if self.spec.score_shift >= 0 else T.shift_left
        score = shift(product, splat(abs(self.spec.score_shift), "int32x16"))
        for bias in self.biases:
            period, heads = int(bias.shape[0]), int(bias.shape[1])
            batch = 0 if period == 1 else self.batch % period
            place = (batch, 0 if heads == 1 else self.head, self.query + i, key)
            score = score + T.cast(load(bias, place, 16), "int32x16")
        if self.mask is not None:
            score = T.min(score, load(self.limit, (i if self.mask.shape[1] > 1 else 0, key), 16))
        return score

    def _weights(self) -> None:
        """weight = table[min(rowmax - score, 127)], and numerator // sum(weight) of each row."""
        unmasked = self.spec.keys // GROUP
        with T.serial(self.rows) as i:
            row_max = T.bind(reduce_lanes("smax", load(self.row_max, (i, 0), 16)))
            store(self.total, 0, splat(0, "int32x16"))
            if unmasked:
                with T.serial(unmasked) as group:
                    self._weight_group(i, row_max, group * GROUP, GROUP)
            if self.spec.keys % GROUP:
                self._weight_group(i, row_max, unmasked * GROUP, self.spec.keys % GROUP)
            total = reduce_lanes("add", load(self.total, 0, 16))
            reciprocal = T.truncdiv(const(self.spec.numerator, "int32"), total)
            if self.mask is not None:  # a row that sees no key has the weights of one that sees all
                reciprocal = T.Select(row_max > HIDDEN_LOGIT, reciprocal, const(0))
            T.buffer_store(self.reciprocal, reciprocal, [i])

    def _weight_group(self, i: Expr, row_max: Expr, key: Expr, count: int) -> None:
        vectors = -(-count // 16)
        peak = T.broadcast(row_max, 16)
        distances = [T.bind(peak - load(self.score, (i, key + m * 16), 16)) for m in range(vectors)]
        clipped = clipped_bytes(self.isa, [distances[min(m, vectors - 1)] for m in range(4)])
        index = T.bind(T.min(clipped, splat(SOFTMAX_TABLE_SIZE - 1, "uint8x64")))
        weights = lookup(self.isa, self.table, index, GROUP)
        if count < GROUP:
            valid = T.bitwise_and(T.reinterpret("int32x16", weights), valid_bytes(count))
            weights = T.reinterpret("uint8x64", valid)
        stored = T.bind(weights if self.isa.vnni else T.cast(weights, "int16x64"))
        store(self.weight, (i, key), stored)
        for at in range(0, GROUP, 16 * self.depth):
            words = cut(stored, at, 16 * self.depth)
            store(self.total, 0, self._dot(load(self.total, 0, 16), words, ones(self.isa)))

    def _output(self) -> None:
        parts = -(-self.chunks // self.vectors)
        bounds = [self.chunks * part // parts for part in range(parts + 1)]
        for first, last in pairwise(bounds):
            self._output_tile(first, last - first)

    def _output_tile(self, first: int, vectors: int) -> None:
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for _, _, acc in tile:
            store(acc, 0, splat(0, "int32x16"))
        with T.serial(self.words) as word:
            places = [(word, first + j, 0) for j in range(vectors)]
            self._products(tile, self.weight, word, self.packed_v, places)
        spec = self.spec
        low, high = INTEGER_RANGE[spec.out_dtype]
        for i, j, acc in tile:
            factor = T.broadcast(T.cast(self.reciprocal[i], "int64"), 16)
            product = T.cast(load(acc, 0, 16), "int64x16") * factor
            half = splat(1 << (spec.norm_shift - 1), "int64x16")
            shifted = T.shift_right(product + half, splat(spec.norm_shift, "int64x16"))
            value = shifted + splat(spec.zero_point, "int64x16")
            clipped = T.max(T.min(value, splat(high, "int64x16")), splat(low, "int64x16"))
            place = (self.row_of[i], self.column + (first + j) * 16)
            store(self.out, place, T.cast(clipped, f"{spec.out_dtype}x16"))
