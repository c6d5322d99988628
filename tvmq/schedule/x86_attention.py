"""Integer attention as one x86 kernel (AVX-512 VNNI): q.k, softmax weights, p.v and the division.

Per (batch, head) the kernel packs k and v into the layout of the dot instruction, in scratch that stays
in the first two cache levels, then walks over tiles of query rows:

    scores   [rows, keys]  int32   u8 x s8 dots; q is made unsigned by +128, which each key's own constant
                                   (half a rounding unit - 128 * sum(k)) takes back out
    weights  [rows, keys]  uint8   table[min(rowmax - score, 127)] by a byte permute, 64 keys at a time
    output   [rows, dim]           u8 x s8 dots of weights and v, times one reciprocal per row

Keys are padded to blocks of 16 by repeating the last key: a repeated score cannot raise the row's
maximum, and a mask takes its weight to zero. The result is numerics.attention, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import Shuffle, const

from tvmq.numerics import INTEGER_RANGE, SOFTMAX_TABLE_SIZE, least_score_shift
from tvmq.schedule.vectors import Buffer, Expr, concat, load, reduce_lanes, shuffle, splat, store

MAX_HEAD_DIM = 1024  # |q.k| stays below 2**24, far from int32
MAX_KEYS = (2**31 - 1) // (255 * 128)  # the sum of weight * value fits int32
TILE_ROWS = (6, 5, 4)  # rows of a register tile: times 4 vectors at most 24 accumulators of 32 registers
TILE_VECTORS = 4
GROUP = 64  # keys whose weights are looked up at once: one byte vector
MAX_IMBALANCE = 8  # stop splitting heads at this many units per thread


@dataclass(frozen=True)
class AttentionSpec:
    """The sizes and constants of one attention; the fields of numerics.attention by the same names."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    score_shift: int
    numerator: int
    norm_shift: int
    zero_point: int
    out_dtype: str


def supports(spec: AttentionSpec) -> str | None:
    """Return why attention_prim_func cannot build spec, or None when it can."""
    checks = (
        (min(spec.batch, spec.heads, spec.queries, spec.keys, spec.head_dim) >= 1, "an empty axis"),
        (spec.head_dim % 16 == 0, f"head_dim {spec.head_dim} is not a multiple of 16"),
        (spec.head_dim <= MAX_HEAD_DIM, f"head_dim {spec.head_dim} is over {MAX_HEAD_DIM}"),
        (spec.keys <= MAX_KEYS, f"{spec.keys} keys are over {MAX_KEYS}: the int32 sum could overflow"),
        (
            least_score_shift(max(spec.head_dim, 1)) <= spec.score_shift <= 31,
            f"score_shift {spec.score_shift} is outside {least_score_shift(max(spec.head_dim, 1))}..31",
        ),
        (0 <= spec.numerator < 2**31, f"numerator {spec.numerator} is outside 0..2**31-1"),
        (1 <= spec.norm_shift <= 62, f"norm_shift {spec.norm_shift} is outside 1..62"),
        (spec.out_dtype in ("uint8", "int8"), f"out_dtype {spec.out_dtype!r} is not uint8 or int8"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def attention_prim_func(spec: AttentionSpec, *, vbmi: bool, threads: int = 1) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, table, out) of spec for a target with avx512vnni.

    q int8 [batch*queries, heads*head_dim]; k, v int8 [batch*keys, heads*head_dim]; table uint8 [128];
    out spec.out_dtype, shaped like q. vbmi: the target also has avx512vbmi. threads: how many will run it;
    heads are split into groups of query rows when they do not fill that many threads evenly.
    Raises ValueError where supports(spec) gives a reason.
    """
    reason = supports(spec)
    if reason is not None:
        raise ValueError(f"attention kernel: {reason}; ask supports(spec) first")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("attention")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        width = spec.heads * spec.head_dim
        q = T.arg("q", T.buffer((spec.batch * spec.queries, width), "int8"))
        k = T.arg("k", T.buffer((spec.batch * spec.keys, width), "int8"))
        v = T.arg("v", T.buffer((spec.batch * spec.keys, width), "int8"))
        table = T.arg("table", T.buffer((SOFTMAX_TABLE_SIZE,), "uint8"))
        out = T.arg("out", T.buffer((spec.batch * spec.queries, width), spec.out_dtype))
        _Kernel(spec, vbmi, threads, (q, k, v, table, out)).emit()
    return builder.get()


def _tile_rows(queries: int) -> int:
    """Return the tile height that computes the fewest rows twice; all rows when there are few."""
    if queries <= TILE_ROWS[0]:
        return queries
    return min(TILE_ROWS, key=lambda rows: -(-queries // rows) * rows)


def _splits(heads: int, tiles: int, threads: int) -> int:
    """Return into how many groups of tiles to split each head so that threads get equal work."""
    splits = 1
    while heads * splits % threads and heads * splits < MAX_IMBALANCE * threads and splits < tiles:
        splits += 1
    return splits


class _Kernel:
    """Emits the statements of one attention kernel; sizes and scratch buffers are its fields."""

    def __init__(self, spec: AttentionSpec, vbmi: bool, threads: int, buffers: Sequence[Buffer]) -> None:
        self.spec, self.vbmi = spec, vbmi
        self.q, self.k, self.v, self.table, self.out = buffers
        self.rows = _tile_rows(spec.queries)
        self.tiles = -(-spec.queries // self.rows)
        self.splits = _splits(spec.batch * spec.heads, self.tiles, threads)
        self.blocks = -(-spec.keys // 16)
        self.quads = -(-spec.keys // 4)
        self.chunks = spec.head_dim // 16
        self.groups = -(-spec.keys // GROUP)

    def emit(self) -> None:
        spec = self.spec
        units = spec.batch * spec.heads * self.splits
        with T.parallel(units) as unit, T.sblock("head"):
            index = T.axis.spatial(units, unit)
            T.reads(*(b[tuple(slice(0, n) for n in b.shape)] for b in (self.q, self.k, self.v, self.table)))
            T.writes(self.out[0 : self.out.shape[0], 0 : self.out.shape[1]])
            self._allocate()
            head = T.bind(index // self.splits % spec.heads)
            self.batch = T.bind(index // (self.splits * spec.heads))
            self.column = T.bind(head * spec.head_dim)
            self._pack_keys()
            self._pack_values()
            per_split = -(-self.tiles // self.splits)
            with T.serial(per_split) as step:
                # A last tile that does not fit is moved up: it computes some rows twice, to the same bytes.
                first = (index % self.splits * per_split + step) * self.rows
                self.row = T.bind(T.min(first, spec.queries - self.rows) + self.batch * spec.queries)
                self._load_queries()
                self._scores()
                self._weights()
                self._output()

    def _allocate(self) -> None:
        dim = self.spec.head_dim
        self.packed_k = T.sblock_alloc_buffer((self.blocks, dim // 4, 64), "int8")
        self.packed_v = T.sblock_alloc_buffer((self.quads, self.chunks, 64), "int8")
        self.key_constant = T.sblock_alloc_buffer((self.blocks * 16,), "int32")
        self.unsigned_q = T.sblock_alloc_buffer((self.rows, dim), "uint8")
        self.score = T.sblock_alloc_buffer((self.rows, self.blocks * 16), "int32")
        self.weight = T.sblock_alloc_buffer((self.rows, self.groups * GROUP), "uint8")
        self.row_max = T.sblock_alloc_buffer((self.rows, 16), "int32")
        self.reciprocal = T.sblock_alloc_buffer((self.rows,), "int32")
        self.total = T.sblock_alloc_buffer((16,), "int32")
        # One buffer per register: a buffer over 1024 bytes would go to the heap.
        count = self.rows * TILE_VECTORS
        self.acc = [T.sblock_alloc_buffer((16,), "int32") for _ in range(count)]
        self.maxima = [T.sblock_alloc_buffer((16,), "int32") for _ in range(self.rows)]

    def _source_row(self, key: Expr) -> Expr:
        return T.min(key, self.spec.keys - 1) + self.batch * self.spec.keys

    def _pack_keys(self) -> None:
        """packed_k [block, dim/4, 16 keys, 4 dims], and half - 128 * sum(k) of every key."""
        with T.serial(self.blocks) as block:
            store(self.total, 0, splat(0, "int32x16"))
            with T.serial(self.chunks) as chunk:
                loads = [
                    load(self.k, (self._source_row(block * 16 + key), self.column + chunk * 16), 16)
                    for key in range(16)
                ]
                # Lane group l of stripe j holds key 4*l + j, so a 4x4 transpose inside each group of
                # four dwords puts one dword of all 16 keys, in order, into each vector.
                stripes = [T.bind(concat(loads[j::4], "int32x4")) for j in range(4)]
                for dword, vector in enumerate(_transpose_dwords(stripes)):
                    packed = T.bind(T.reinterpret("int8x64", vector))
                    store(self.packed_k, (block, chunk * 4 + dword, 0), packed)
                    total = _dot(load(self.total, 0, 16), splat(128, "uint8x64"), packed)
                    store(self.total, 0, total)
            constant = splat(self._half(), "int32x16") - load(self.total, 0, 16)
            store(self.key_constant, block * 16, constant)

    def _half(self) -> int:
        return 1 << (self.spec.score_shift - 1) if self.spec.score_shift > 0 else 0

    def _pack_values(self) -> None:
        """packed_v [keys/4, dim/16, 16 dims, 4 keys]; rows past the last key repeat it, at weight 0."""
        order = [16 * key + lane for lane in range(16) for key in range(4)]
        with T.serial(self.quads) as quad, T.serial(self.chunks) as chunk:
            loads = [
                load(self.v, (self._source_row(quad * 4 + key), self.column + chunk * 16), 16)
                for key in range(4)
            ]
            store(self.packed_v, (quad, chunk, 0), shuffle(loads, order))

    def _load_queries(self) -> None:
        for i in range(self.rows):
            with T.serial(self.chunks) as chunk:
                signed = load(self.q, (self.row + i, self.column + chunk * 16), 16)
                flipped = T.bitwise_xor(T.reinterpret("uint8x16", signed), splat(128, "uint8x16"))
                store(self.unsigned_q, (i, chunk * 16), flipped)

    def _scores(self) -> None:
        full, rest = divmod(self.blocks, TILE_VECTORS)
        for i in range(self.rows):
            store(self.maxima[i], 0, splat(-(2**31), "int32x16"))
        if full:
            with T.serial(full) as group:
                self._score_tile(group * TILE_VECTORS, TILE_VECTORS)
        if rest:
            self._score_tile(full * TILE_VECTORS, rest)
        for i in range(self.rows):
            store(self.row_max, (i, 0), load(self.maxima[i], 0, 16))

    def _score_tile(self, block: Expr, vectors: int) -> None:
        """Scores of all rows of the tile against vectors * 16 keys, and their running maxima."""
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for _, j, acc in tile:
            store(acc, 0, load(self.key_constant, (block + j) * 16, 16))
        with T.serial(self.spec.head_dim // 4) as quad:
            queries = [T.bind(_broadcast_quad(self.unsigned_q, i, quad)) for i in range(self.rows)]
            keys = [T.bind(load(self.packed_k, (block + j, quad, 0), 64)) for j in range(vectors)]
            for i, j, acc in tile:
                store(acc, 0, _dot(load(acc, 0, 16), queries[i], keys[j]))
        for i, j, acc in tile:
            shift = T.shift_right if self.spec.score_shift >= 0 else T.shift_left
            shifted = T.bind(shift(load(acc, 0, 16), splat(abs(self.spec.score_shift), "int32x16")))
            store(self.score, (i, (block + j) * 16), shifted)
            store(self.maxima[i], 0, T.max(load(self.maxima[i], 0, 16), shifted))

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
            T.buffer_store(self.reciprocal, T.truncdiv(const(self.spec.numerator, "int32"), total), [i])

    def _weight_group(self, i: Expr, row_max: Expr, key: Expr, count: int) -> None:
        vectors = -(-count // 16)
        peak = T.broadcast(row_max, 16)
        distances = [T.bind(peak - load(self.score, (i, key + m * 16), 16)) for m in range(vectors)]
        d = [distances[min(m, vectors - 1)] for m in range(4)]
        # The packs saturate (to 32767, then 255), so the distance is exact up to the clip at 127.
        words = [_llvm("packssdw.512", "int16x32", d[m], d[m + 1]) for m in (0, 2)]
        packed = _llvm("packuswb.512", "uint8x64", *words)
        weights = self._lookup(T.bind(T.min(packed, splat(SOFTMAX_TABLE_SIZE - 1, "uint8x64"))))
        # The packs work inside lanes of 128 bits: dword 4*lane + m holds vector m's keys 4*lane..4*lane+3.
        order = [4 * lane + m for m in range(4) for lane in range(4)]
        dwords = shuffle([T.reinterpret("int32x16", weights)], order)
        if count < GROUP:
            dwords = T.bitwise_and(dwords, _valid_bytes(count))
        ordered = T.bind(T.reinterpret("uint8x64", dwords))
        store(self.weight, (i, key), ordered)
        store(self.total, 0, _dot(load(self.total, 0, 16), ordered, splat(1, "int8x64")))

    def _lookup(self, index: Expr) -> Expr:
        """table[index] for 64 indices below 128."""
        low, high = (load(self.table, part, 64) for part in (0, 64))
        if self.vbmi:
            return _llvm("vpermi2var.qi.512", "uint8x64", low, index, high)
        # No byte permute: look up the 64 words of the table twice, for the even and for the odd bytes of
        # index, then pick the byte of the word by the index's lowest bit.
        words = T.bind(T.reinterpret("uint16x32", index))
        tables = [T.reinterpret("uint16x32", part) for part in (low, high)]
        even, odd = (
            T.bind(_llvm("vpermi2var.hi.512", "uint16x32", tables[0], _shift(words, by), tables[1]))
            for by in (1, 9)
        )
        first = T.bitwise_or(T.bitwise_and(even, splat(255, "uint16x32")), odd << splat(8, "uint16x32"))
        second = T.bitwise_or(_shift(even, 8), T.bitwise_and(odd, splat(0xFF00, "uint16x32")))
        is_odd = T.bitwise_and(index, splat(1, "uint8x64")).equal(splat(1, "uint8x64"))
        return T.Select(is_odd, T.reinterpret("uint8x64", second), T.reinterpret("uint8x64", first))

    def _output(self) -> None:
        parts = -(-self.chunks // TILE_VECTORS)
        bounds = [self.chunks * part // parts for part in range(parts + 1)]
        for first, last in pairwise(bounds):
            self._output_tile(first, last - first)

    def _output_tile(self, first: int, vectors: int) -> None:
        tile = [(i, j, self.acc[i * vectors + j]) for i in range(self.rows) for j in range(vectors)]
        for _, _, acc in tile:
            store(acc, 0, splat(0, "int32x16"))
        with T.serial(self.quads) as quad:
            weights = [T.bind(_broadcast_quad(self.weight, i, quad)) for i in range(self.rows)]
            values = [T.bind(load(self.packed_v, (quad, first + j, 0), 64)) for j in range(vectors)]
            for i, j, acc in tile:
                store(acc, 0, _dot(load(acc, 0, 16), weights[i], values[j]))
        spec = self.spec
        low, high = INTEGER_RANGE[spec.out_dtype]
        for i, j, acc in tile:
            factor = T.broadcast(T.cast(self.reciprocal[i], "int64"), 16)
            product = T.cast(load(acc, 0, 16), "int64x16") * factor
            half = splat(1 << (spec.norm_shift - 1), "int64x16")
            shifted = T.shift_right(product + half, splat(spec.norm_shift, "int64x16"))
            value = shifted + splat(spec.zero_point, "int64x16")
            clipped = T.max(T.min(value, splat(high, "int64x16")), splat(low, "int64x16"))
            place = (self.row + i, self.column + (first + j) * 16)
            store(self.out, place, T.cast(clipped, f"{spec.out_dtype}x16"))


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.avx512.{name}", *operands)


def _dot(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """acc int32x16 + dots of four: uint8x64 times int8x64."""
    return _llvm("vpdpbusd.512", "int32x16", acc, unsigned, signed)


def _shift(words: Expr, by: int) -> Expr:
    return T.shift_right(words, splat(by, "uint16x32"))


def _transpose_dwords(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose 4 rows int32x16 inside each of their four groups of four dwords."""

    def unpack(a: Expr, b: Expr, pattern: Sequence[int]) -> Expr:
        order = [4 * group + lane % 4 + 16 * (lane // 4) for group in range(4) for lane in pattern]
        return T.bind(shuffle([a, b], order))

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    result: list[Expr] = []
    for half in (low, high):
        left, right = unpack(rows[0], rows[1], half), unpack(rows[2], rows[3], half)
        result += [unpack(left, right, pairs_low), unpack(left, right, pairs_high)]
    return result


def _broadcast_quad(buffer: Buffer, row: int, quad: Expr) -> Expr:
    """Four bytes of buffer[row], repeated 16 times."""
    word = T.reinterpret("int32", load(buffer, (row, quad * 4), 4))
    return T.reinterpret("uint8x64", T.broadcast(word, 16))


def _valid_bytes(count: int) -> Expr:
    """int32x16 whose first count bytes are 255 and the others 0."""
    mask = bytes(255 * (byte < count) for byte in range(64))
    words = [int.from_bytes(mask[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
    return Shuffle([const(word, "int32") for word in words], [const(lane, "int32") for lane in range(16)])
