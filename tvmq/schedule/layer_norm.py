"""Integer layer norm as one kernel: plain TIR vectors, so it runs on every LLVM target.

Rows are taken in blocks of 16, in three steps:

    moments      sum(x) and sum(x**2) of each row, exact, hence mean and variance exactly as numerics has
                 them: sum((16x - mean)**2) = 256 sum(x**2) - 32 mean sum(x) + C mean**2 has no rounding
    reciprocal   the Newton square root and the reciprocal of 16 rows at once, one row per lane
    normalise    16 channels at once: (x * reciprocal + constant) >> 20, clip, gain, offset, shift, clip;
                 32 x 32 bit products wherever the reciprocal has fewer than 32 bits, which it has in every
                 row but nearly constant ones, 64 bit products there

The divisions of the second step are float64. They are exact: for integers a < 2**53 and b >= 1 the true
quotient is an integer n or at least 1/b away from one, and rounding moves it by at most a/b * 2**-53 < 1/b,
so floor(a / b) is the integer division. Vectors of them cost a tenth of 64-bit integer division.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.numerics import (
    CENTRED_FRACTION_BITS,
    INTEGER_RANGE,
    LAYER_NORM_MAX_CHANNELS,
    NEWTON_STEPS,
    NORMALISED_FRACTION_BITS,
    NORMALISED_SHIFT,
    RECIPROCAL_BITS,
    SQRT_POWERS,
    STD_EXTRA_BITS,
)
from tvmq.schedule.arm_intrinsics import multiply_long
from tvmq.schedule.isa import Isa
from tvmq.schedule.space import Space
from tvmq.schedule.vectors import Buffer, Expr, load, reduce_lanes, repeat, shuffle, splat, store, vector_type

# Rows whose divisions are done together: in four AVX-512 vectors of float64 the chains of divisions hide each
# other, in two they are 3 % slower over all.
BLOCK_ROWS, LESS_ROWS, LESS_COSTS = 32, 16, 1.03
LANES = 16
MAX_EPSILON = 2**52  # the variance stays below 2**53, where float64 is exact
PRODUCT_SHIFT = NORMALISED_SHIFT - CENTRED_FRACTION_BITS
FLOAT64_MANTISSA, FLOAT64_BIAS = 52, 1023

RESULTS = ("out", "copy")


@dataclass(frozen=True)
class LayerNormSpec:
    """The sizes and constants of one layer norm; the fields of numerics.layer_norm by the same names."""

    rows: int
    channels: int
    gain_shift: int
    epsilon: int
    limit: int
    out_dtype: str
    pieces: int = 0  # of a row, each a row of x that an index names; 0: rows as they lie
    copy: tuple[int, ...] | None = None  # a second result, uint8 made of int16, as in LinearSpec
    low: int | None = None  # where to clip, inside out_dtype's own range; None: at its end
    high: int | None = None

    @property
    def clip(self) -> tuple[int, int]:
        """Return the least and the greatest number of the result."""
        low, high = INTEGER_RANGE[self.out_dtype]
        return low if self.low is None else self.low, high if self.high is None else self.high

    @property
    def width(self) -> int:
        """Channels that lie together."""
        return self.channels // (self.pieces or 1)


def supports(spec: LayerNormSpec) -> str | None:
    """Return why layer_norm_prim_func cannot build spec, or None when it can."""
    channels, out = spec.channels, spec.out_dtype
    checks = (
        (min(spec.rows, spec.channels) >= 1, "an empty axis"),
        (channels <= LAYER_NORM_MAX_CHANNELS, f"{channels} channels are over {LAYER_NORM_MAX_CHANNELS}"),
        (0 <= spec.gain_shift <= 31, f"gain_shift {spec.gain_shift} is outside 0..31"),
        (0 <= spec.epsilon < MAX_EPSILON, f"epsilon {spec.epsilon} is outside 0..2**52-1"),
        (0 < spec.limit < 2**31, f"limit {spec.limit} is outside 1..2**31-1"),
        (spec.pieces == 0 or channels % spec.pieces == 0, f"{channels} channels in {spec.pieces} pieces"),
        (out in ("uint8", "int8", "int16"), f"out_dtype {out!r} is not an 8 or 16 bit integer"),
        (spec.copy is None or out == "int16", f"out_dtype {out!r} has no copy"),
    )
    return next((reason for holds, reason in checks if not holds), None)


@dataclass(frozen=True)
class LayerNormDecision:
    """How the work is cut: channels at once, rows whose divisions are done together, threads or one."""

    lanes: int
    block_rows: int
    parallel: bool = True


def default_decision(spec: LayerNormSpec, threads: int = 1) -> LayerNormDecision:
    """Return a cut that is good untuned: large blocks, unless a thread would have more rows for it."""

    def cost(block: int) -> float:
        rows = min(-(-spec.rows // (block * threads)) * block, spec.rows)
        return rows * (LESS_COSTS if block == LESS_ROWS else 1)

    return LayerNormDecision(math.gcd(spec.width, LANES), min((BLOCK_ROWS, LESS_ROWS), key=cost))


def layer_norm_space(spec: LayerNormSpec, threads: int) -> Space:
    """Return the cuts that spec allows."""
    default = default_decision(spec, threads)
    lanes = {default.lanes, *(n for n in (LANES // 2, LANES, 2 * LANES) if spec.width % n == 0)}
    return Space(
        {
            "lanes": tuple(sorted(lanes)),
            "block_rows": (LESS_ROWS // 2, LESS_ROWS, BLOCK_ROWS, 2 * BLOCK_ROWS),
            "parallel": (False, True) if threads > 1 else (True,),
        },
        asdict(default),
    )


def speed_of(spec: LayerNormSpec) -> LayerNormSpec:
    """Return spec without the constants that differ from layer to layer and take no time."""
    return replace(
        spec, gain_shift=0, epsilon=0, copy=None if spec.copy is None else (8, 0), low=None, high=None
    )


def layer_norm_prim_func(
    spec: LayerNormSpec, decision: LayerNormDecision | None = None, isa: Isa | None = None
) -> tirx.PrimFunc:
    """Return the kernel (x, gain, offset[, index], out[, copy]) of spec; no decision means the default one.

    isa: of the target, where it is known: the same numbers by instructions that LLVM does not find.

    x int16 [rows, channels]; gain, offset int32 [channels]; out spec.out_dtype [rows, channels], copy uint8.
    With pieces, x is [rows * pieces, channels / pieces], index int32 [rows * pieces]. Raises ValueError where
    supports(spec) gives a reason.
    """
    reason = supports(spec)
    if reason is not None:
        raise ValueError(f"layer norm kernel: {reason}; ask supports(spec) first")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("layer_norm")
        T.func_attr({"tirx.noalias": True, "tvmq.scheduled": True})
        shape, pieces = (spec.rows, spec.channels), spec.pieces or 1
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "x": ((spec.rows * pieces, spec.channels // pieces), "int16")
        }
        shapes |= dict.fromkeys(("gain", "offset"), (shape[1:], "int32"))
        if spec.pieces:
            shapes["index"] = ((spec.rows * pieces,), "int32")
        shapes["out"] = (shape, spec.out_dtype)
        if spec.copy is not None:
            shapes["copy"] = (shape, "uint8")
        buffers = {name: T.arg(name, T.buffer(*buffer)) for name, buffer in shapes.items()}
        neon = isa is not None and isa.neon
        _Kernel(spec, decision or default_decision(spec), buffers, neon=neon).emit()
    return builder.get()


class _Kernel:
    """Emits the statements of one layer norm; sizes and scratch buffers are its fields."""

    def __init__(
        self, spec: LayerNormSpec, decision: LayerNormDecision, buffers: Mapping[str, Buffer], *, neon: bool
    ) -> None:
        self.spec, self.buffers, self.neon = spec, buffers, neon
        self.lanes, self.block_rows, self.parallel = decision.lanes, decision.block_rows, decision.parallel
        self.x, self.gain, self.offset, self.out = (buffers[n] for n in ("x", "gain", "offset", "out"))
        self.width = spec.width
        # No value lies more than sqrt(channels) standard deviations from the mean. Where the reciprocal is
        # under 2**31 the standard deviation is over 2**9 units and right to two: a limit of 1.5 times that
        # bound is never reached.
        bound = math.sqrt(spec.channels) * 2**NORMALISED_FRACTION_BITS
        self.bounded = spec.limit > 1.5 * bound

    def emit(self) -> None:
        spec = self.spec
        blocks = -(-spec.rows // self.block_rows)
        loop = T.parallel if self.parallel else T.serial
        with loop(blocks) as block, T.sblock("rows"):
            index = T.axis.spatial(blocks, block)
            whole = {n: b[tuple(slice(0, d) for d in b.shape)] for n, b in self.buffers.items()}
            T.reads(*(region for name, region in whole.items() if name not in RESULTS))
            T.writes(*(region for name, region in whole.items() if name in RESULTS))
            self.mean = T.sblock_alloc_buffer((self.block_rows,), "int64")
            self.variance = T.sblock_alloc_buffer((self.block_rows,), "float64")
            self.reciprocal = T.sblock_alloc_buffer((self.block_rows,), "int64")
            sums = [T.sblock_alloc_buffer((self.lanes,), "int32") for _ in range(3)]
            store(self.variance, 0, splat(1.0, f"float64x{self.block_rows}"))
            first = T.bind(index * self.block_rows)
            count = T.bind(T.min(spec.rows - first, self.block_rows))
            with T.serial(count) as row:
                self._moments(first + row, row, sums)
            self._reciprocals()
            with T.serial(count) as row:
                self._normalise(first + row, row)

    def _pieces(self, row: Expr) -> list[tuple[Expr, int]]:
        """The rows of x that a row of the norm is made of, each with its first channel."""
        if not self.spec.pieces:
            return [(row, 0)]
        first = row * self.spec.pieces
        rows = [T.bind(self.buffers["index"][first + piece]) for piece in range(self.spec.pieces)]
        return [(x_row, piece * self.width) for piece, x_row in enumerate(rows)]

    def _moments(self, source: Expr, row: Expr, sums: list[Buffer]) -> None:
        """mean[row] and variance[row]; sums: lanes of sum(x), and of x**2's low and high 16 bits."""
        channels, wide = self.spec.channels, vector_type("int32", self.lanes)
        for total in sums:
            store(total, 0, splat(0, wide))
        pairs = self.width // (2 * self.lanes)
        for x_row, _ in self._pieces(source):
            with T.serial(pairs) as step:
                self._add_pair(x_row, step * 2 * self.lanes, sums)
            if self.width > pairs * 2 * self.lanes:
                x = T.bind(T.cast(load(self.x, (x_row, pairs * 2 * self.lanes), self.lanes), wide))
                self._add_terms(sums, x, T.reinterpret(_unsigned(wide), x * x))
        x_sum, low_sum, high_sum = (
            T.bind(T.cast(reduce_lanes("add", load(total, 0, self.lanes)), "int64")) for total in sums
        )
        unit = 1 << CENTRED_FRACTION_BITS
        mean = T.bind(T.floordiv(2 * unit * x_sum + channels, _int64(2 * channels)))
        squares = T.shift_left(high_sum, _int64(16)) + low_sum
        energy = squares * (unit * unit) - mean * x_sum * (2 * unit) + mean * mean * channels
        variance = T.truncdiv(T.shift_left(energy, _int64(2 * STD_EXTRA_BITS)), _int64(channels))
        T.buffer_store(self.mean, mean, [row])
        T.buffer_store(self.variance, T.cast(variance + self.spec.epsilon, "float64"), [row])

    def _add_pair(self, source: Expr, column: Expr, sums: list[Buffer]) -> None:
        """Add 2 * lanes channels; even and odd apart, which x86 has as one multiply-add of int16 pairs."""
        lanes, wide = self.lanes, vector_type("int32", self.lanes)
        halves = [T.cast(load(self.x, (source, column + at), lanes), wide) for at in (0, lanes)]
        both = T.bind(load(self.x, (source, column), 2 * lanes))
        even, odd = (T.bind(T.cast(shuffle([both], range(at, 2 * lanes, 2)), wide)) for at in (0, 1))
        # Two squares of -32768 sum to 2**31: unsigned.
        squares = T.reinterpret(_unsigned(wide), even * even) + T.reinterpret(_unsigned(wide), odd * odd)
        self._add_terms(sums, halves[0] + halves[1], T.bind(squares))

    def _add_terms(self, sums: list[Buffer], x: Expr, squares: Expr) -> None:
        unsigned, signed = str(squares.ty.dtype), str(x.ty.dtype)
        low = T.bitwise_and(squares, splat(0xFFFF, unsigned))
        high = T.shift_right(squares, splat(16, unsigned))
        terms = (x, T.reinterpret(signed, low), T.reinterpret(signed, high))
        for total, term in zip(sums, terms, strict=True):
            store(total, 0, load(total, 0, self.lanes) + term)

    def _reciprocals(self) -> None:
        """reciprocal = 2**40 // integer_sqrt(variance), one row per lane."""
        floats, ints = f"float64x{self.block_rows}", f"int64x{self.block_rows}"
        variance = T.bind(load(self.variance, 0, self.block_rows))
        # variance in [4**(c-1), 4**c) has exponent 2c-2 or 2c-1; zero has -1023, which the maximum mends.
        exponent = T.shift_right(T.reinterpret(ints, variance), splat(FLOAT64_MANTISSA, ints))
        count = T.shift_right(exponent - splat(FLOAT64_BIAS - 2, ints), splat(1, ints))
        count = T.max(T.min(count, splat(len(SQRT_POWERS), ints)), splat(0, ints))
        power = T.shift_left(count + splat(FLOAT64_BIAS, ints), splat(FLOAT64_MANTISSA, ints))
        root = T.bind(T.reinterpret(floats, power))
        for _ in range(NEWTON_STEPS):
            twice = root + T.floor(variance / root)
            root = T.bind(T.max(T.floor(twice * splat(0.5, floats)), splat(1.0, floats)))
        store(self.reciprocal, 0, T.cast(splat(2.0**RECIPROCAL_BITS, floats) / root, ints))

    def _normalise(self, source: Expr, row: Expr) -> None:
        """Write out[source]; floor((16 x r + b) / 2**24) = floor((x r + floor(b / 16)) / 2**20)."""
        reciprocal = T.bind(self.reciprocal[row])
        half = _int64(1 << (NORMALISED_SHIFT - 1))
        constant = T.bind(T.shift_right(half - self.mean[row] * reciprocal, _int64(CENTRED_FRACTION_BITS)))
        if self.lanes == 1:
            self._normalise_wide(source, reciprocal, constant)
            return
        with T.If(reciprocal < _int64(2**31)):
            with T.Then():
                self._normalise_narrow(source, reciprocal, constant)
            with T.Else():
                self._normalise_wide(source, reciprocal, constant)

    def _normalise_wide(self, source: Expr, reciprocal: Expr, constant: Expr) -> None:
        spec, lanes = self.spec, self.lanes
        wide, narrow = vector_type("int64", lanes), vector_type("int32", lanes)
        for x_row, first in self._pieces(source):
            with T.serial(self.width // lanes) as step:
                x = T.cast(load(self.x, (x_row, step * lanes), lanes), wide)
                product = x * repeat(reciprocal, lanes) + repeat(constant, lanes)
                normal = T.shift_right(product, splat(PRODUCT_SHIFT, wide))
                bounded = T.max(T.min(normal, splat(spec.limit, wide)), splat(-spec.limit, wide))
                self._store_scaled(source, first + step * lanes, T.cast(bounded, narrow))

    def _normalise_narrow(self, source: Expr, reciprocal: Expr, constant: Expr) -> None:
        """The same for reciprocal < 2**31: the even and the odd channels in the two halves of 64 bits."""
        lanes = self.lanes
        narrow, pairs = vector_type("int32", lanes), vector_type("int64", lanes // 2)
        if self.neon:
            self._normalise_long(source, T.bind(T.cast(reciprocal, "int32")), constant)
            return
        # Sign-extending what fits 32 bits anyway tells LLVM to multiply 32 by 32 bits.
        factor = T.bind(repeat(T.cast(T.cast(reciprocal, "int32"), "int64"), lanes // 2))
        addend = T.bind(repeat(constant, lanes // 2))
        for x_row, first in self._pieces(source):
            with T.serial(self.width // lanes) as step:
                x = T.cast(load(self.x, (x_row, step * lanes), lanes), narrow)
                both = T.bind(T.reinterpret(pairs, x))
                even = T.shift_right(T.shift_left(both, splat(32, pairs)), splat(32, pairs))
                odd = T.shift_right(both, splat(32, pairs))
                low = T.shift_right(even * factor + addend, splat(PRODUCT_SHIFT, pairs))
                high = T.shift_left(odd * factor + addend, splat(32 - PRODUCT_SHIFT, pairs))
                halves = [T.reinterpret(narrow, half) for half in (low, high)]
                normal = shuffle(halves, [lane + lane % 2 * lanes for lane in range(lanes)])
                self._store_scaled(source, first + step * lanes, self._limited(normal))

    def _normalise_long(self, source: Expr, factor: Expr, constant: Expr) -> None:
        """The same by instructions of ARM that multiply 32 by 32 bits."""
        lanes = self.lanes
        wide, narrow = vector_type("int64", lanes), vector_type("int32", lanes)
        for x_row, first in self._pieces(source):
            with T.serial(self.width // lanes) as step:
                x = T.bind(T.cast(load(self.x, (x_row, step * lanes), lanes), narrow))
                product = multiply_long(x, repeat(factor, lanes)) + repeat(constant, lanes)
                normal = T.cast(T.shift_right(product, splat(PRODUCT_SHIFT, wide)), narrow)
                self._store_scaled(source, first + step * lanes, self._limited(normal))

    def _limited(self, normal: Expr) -> Expr:
        if self.bounded:
            return normal
        narrow = str(normal.ty.dtype)
        return T.max(T.min(normal, splat(self.spec.limit, narrow)), splat(-self.spec.limit, narrow))

    def _store_scaled(self, source: Expr, column: Expr, normal: Expr) -> None:
        spec, lanes, narrow = self.spec, self.lanes, vector_type("int32", self.lanes)
        low, high = spec.clip
        gain, offset = (load(b, column, lanes) for b in (self.gain, self.offset))
        scaled = T.shift_right(normal * gain + offset, splat(spec.gain_shift, narrow))
        clipped = T.max(T.min(scaled, splat(high, narrow)), splat(low, narrow))
        store(self.out, (source, column), T.cast(clipped, vector_type(spec.out_dtype, lanes)))
        if spec.copy is not None:
            shift, zero_point, low, high = spec.copy if len(spec.copy) > 2 else (*spec.copy, 0, 255)
            half = splat((1 << shift >> 1) + (zero_point << shift), narrow)
            moved = T.shift_right(clipped + half, splat(shift, narrow))
            code = T.max(T.min(moved, splat(high, narrow)), splat(low, narrow))
            store(self.buffers["copy"], (source, column), T.cast(code, vector_type("uint8", lanes)))


def _unsigned(dtype: str) -> str:
    return f"u{dtype}"


def _int64(value: int) -> Expr:
    return const(value, "int64")
