"""What integer products store of their int32 sums, 16 or 64 at a time, and the `finish` block of linears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.numerics import INTEGER_RANGE
from tvmq.schedule.byte_vectors import lookup, pack_bytes, pack_words
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import DEPTH, LANES, TABLE_SIZE, LinearSpec
from tvmq.schedule.vectors import prefetch, shuffle
from tvmq.schedule.x86_intrinsics import PACK_BYTES, concat

PER_CHANNEL = ("bias", "scale", "gain", "multiplier", "shift")
MOST_LINES = 1  # of weights that a row prefetches; where more are due, the loop over depths asks for them
PACK_BITS = 512  # where packing four registers to one beats what LLVM does, a saturating move for each


def groups_per_step(spec: LinearSpec, isa: Isa) -> int:
    """Return how many groups are requantized together: as many as make one register of bytes, or one."""
    groups = isa.bits // (8 * LANES)
    return groups if (spec.table or packs(spec, isa)) and spec.groups % groups == 0 else 1


def packs(spec: LinearSpec, isa: Isa) -> bool:
    """Whether four registers of sums can be packed to one of bytes by the instructions that saturate."""
    plain = not (spec.fixed_point or spec.residual)
    return isa.bits == PACK_BITS and plain and spec.out_dtype in PACK_BYTES


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Turns sums into what is stored of them; arguments are the buffers of the function being built."""

    spec: LinearSpec
    arguments: dict[str, Any]
    isa: Isa
    per_step: int  # groups requantized together: 1, or groups_per_step

    @property
    def width(self) -> int:
        """Channels of a step."""
        return self.per_step * LANES

    @property
    def steps(self) -> int:
        """Steps of a row."""
        return self.spec.groups // self.per_step

    def store_step(self, row: Any, step: Any, sums: Sequence[Any], *, may_be_last: bool = True) -> None:
        """Emit the stores of one step of a row; sums int32x16 without bias, one per group of the step.

        may_be_last: the step may be the last one of the row, which is narrower where channels are missing.
        """
        first, last_width = step * self.width, self.spec.outputs - (self.steps - 1) * self.width
        if last_width == self.width or not may_be_last:
            self.store(row, first, sums, self.width)
        elif self.steps == 1:
            self.store(row, first, sums, last_width)
        else:
            with T.If(step < self.steps - 1):
                with T.Then():
                    self.store(row, first, sums, self.width)
                with T.Else():
                    self.store(row, first, sums, last_width)

    def store(self, row: Any, first: Any, sums: Sequence[Any], width: int) -> None:
        """Emit the stores of `width` channels of a row from the first on, as whole vectors where they are."""
        lanes = len(sums) * LANES
        residual = read_residual(self.spec, self.arguments, row, first, width, lanes)
        values = self._values(first, residual, sums)
        if self.spec.copy is not None:
            values = T.bind(values)
            self._put("copy", _copied(values, *self.spec.copy), (row, first), width)
        if self.spec.table:
            clipped = self._staged(values, lanes, self.spec.out_dtype)
            values = lookup(self.isa, self.arguments["table"], clipped[T.ramp(0, 1, lanes)], lanes)
        self._put("out", values, (row, first), width)

    def _put(self, name: str, values: Any, place: tuple[Any, Any], width: int) -> None:
        out, (row, first) = self.arguments[name], place
        lanes = int(str(values.ty.dtype).partition("x")[2])
        if width == lanes:
            T.buffer_store(out, values, [row, T.ramp(first, 1, width)])
            return
        staged = self._staged(values, lanes, str(out.dtype))
        for at, count in _powers_of_two(width):
            T.buffer_store(out, staged[_ramp(at, count)], [row, _ramp(first + at, count)])

    def _staged(self, values: Any, lanes: int, dtype: str) -> Any:
        """Return a local buffer that holds values."""
        staged = T.sblock_alloc_buffer((lanes,), dtype)
        T.buffer_store(staged, values, [T.ramp(0, 1, lanes)])
        return staged

    def _values(self, first: Any, residual: Any, sums: Sequence[Any]) -> Any:
        places = [first + i * LANES for i in range(len(sums))]
        if len(sums) == 1:
            return requantized(self.spec, self.arguments, first, sums[0], residual)
        if packs(self.spec, self.isa):
            parts = [shifted(self.arguments, at, total) for at, total in zip(places, sums, strict=True)]
            return self._packed(parts)
        # The sums are read group by group, as they were written: wider loads would push them out of
        # their registers.
        parts = [
            requantized(self.spec, self.arguments, at, total, None)
            for at, total in zip(places, sums, strict=True)
        ]
        return concat(parts, LANES)

    def _packed(self, groups: list[Any]) -> Any:
        """Return 64 requantized sums as clipped bytes; int16, between the two, holds both limits."""
        dtype = self.spec.out_dtype
        packed = pack_bytes(self.isa, dtype, *(pack_words(self.isa, *groups[at : at + 2]) for at in (0, 2)))
        # The packs work inside lanes of 128 bits: dword 4*lane + m holds group m's channels from 4*lane on.
        order = [4 * lane + m for m in range(4) for lane in range(4)]
        values = T.reinterpret(f"{dtype}x64", shuffle([T.reinterpret("int32x16", packed)], order))
        if self.spec.clip == INTEGER_RANGE[dtype]:
            return values
        low, high = (T.broadcast(tirx.const(limit, dtype), 64) for limit in self.spec.clip)
        return T.max(T.min(values, high), low)


@dataclass(frozen=True, slots=True)
class Finish:
    """Emits the block; arguments and total are the buffers of the function that is being built.

    total is int32 [rows, groups, 16], the sums without bias. A step is one or more groups of a row.
    """

    spec: LinearSpec
    arguments: dict[str, Any]
    total: Any
    isa: Isa
    ahead: int = 0  # how many groups further on weights are prefetched; 0: none are

    def emit(self) -> None:
        """Append the block to the function."""
        epilogue = Epilogue(self.spec, self.arguments, self.isa, groups_per_step(self.spec, self.isa))
        with T.grid(self.spec.rows, epilogue.steps) as (i, j), T.sblock("finish"):
            row, step = T.axis.spatial(self.spec.rows, i), T.axis.spatial(epilogue.steps, j)
            self._regions(epilogue, row, step)
            self._prefetch(epilogue.per_step, row, step)
            first, lanes = step * epilogue.per_step, T.ramp(0, 1, LANES)
            sums = [self.total[row, first + i, lanes] for i in range(epilogue.per_step)]
            epilogue.store_step(row, step, sums)

    def _regions(self, epilogue: Epilogue, row: Any, step: Any) -> None:
        per_step, first, width = epilogue.per_step, step * epilogue.width, epilogue.width
        reads = [self.total[row, step * per_step : step * per_step + per_step, 0:LANES]]
        for name, buffer in self.arguments.items():
            if name in PER_CHANNEL:
                reads.append(buffer[first : first + width])
            elif name == "residual":
                reads.append(buffer[row, first : first + width])
            elif name == "table":
                reads.append(buffer[0:TABLE_SIZE])
        T.reads(*reads)
        T.writes(self.arguments["out"][row, first : first + width])

    def _prefetch(self, per_step: int, row: Any, step: Any) -> None:
        """Ask for the row's share of the weights of the tile that comes after this one.

        A model's weights do not stay in L2 from one run to the next: without this, the first rows of each
        tile wait for L3, 5 to 10 % of the whole kernel's time.
        """
        weight, depths = self.arguments["weight"], self.spec.inputs // DEPTH
        share = ceil(depths / self.spec.rows)
        if not self.ahead or share > MOST_LINES:
            return
        for group in range(per_step):
            later = T.min(step * per_step + group + self.ahead, self.spec.groups - 1)
            for line in range(share):
                prefetch(weight, (later, T.min(row * share + line, depths - 1), 0, 0))


def _copied(values: Any, shift: int, zero_point: int, low: int = 0, high: int = 255) -> Any:
    """Return int16 values as uint8: numerics.requantize, clipped."""
    half = (1 << shift >> 1) + (zero_point << shift)
    moved = T.shift_right(T.cast(values, f"int32x{LANES}") + _splat(half, "int32"), _splat(shift, "int32"))
    clipped = T.max(T.min(moved, _splat(high, "int32")), _splat(low, "int32"))
    return T.cast(clipped, f"uint8x{LANES}")


def read_residual(
    spec: LinearSpec, arguments: dict[str, Any], row: Any, first: Any, width: int, padded: int = LANES
) -> Any:
    """Return int16 [padded] of the residual from channel `first` on, reading `width`; None without one."""
    if not spec.residual:
        return None
    residual = arguments["residual"]
    if width == padded:
        return residual[row, T.ramp(first, 1, width)]
    staged = T.sblock_alloc_buffer((padded,), "int16")
    T.buffer_store(staged, T.broadcast(T.int16(0), padded), [T.ramp(0, 1, padded)])
    for at, count in _powers_of_two(width):
        T.buffer_store(staged, residual[row, _ramp(first + at, count)], [_ramp(at, count)])
    return staged[T.ramp(0, 1, padded)]


def shifted(arguments: dict[str, Any], first: Any, sums: Any) -> Any:
    """Return 16 requantized sums, of the channels from first on, int32, before they are clipped."""
    lanes = T.ramp(first, 1, LANES)
    bias, shift = arguments["bias"][lanes], arguments["shift"][lanes]
    if "gain" not in arguments:
        return T.shift_right(sums + bias, shift)
    gain, shift = (T.cast(numbers, f"int32x{LANES}") for numbers in (arguments["gain"][lanes], shift))
    return T.shift_right(sums * gain + bias, shift)


def requantized(spec: LinearSpec, arguments: dict[str, Any], first: Any, sums: Any, residual: Any) -> Any:
    """Return the 16 outputs from channel `first` on, before the table; sums int32x16, without bias."""
    lanes = T.ramp(first, 1, LANES)
    channel = {name: arguments[name][lanes] for name in PER_CHANNEL if name in arguments}
    total = sums + channel["bias"]
    if spec.out_dtype == "float32":
        return T.cast(total, f"float32x{LANES}") * channel["scale"]
    if spec.fixed_point:
        value = _fixed_point(total, channel["multiplier"], channel["shift"])
        value = value + _splat(spec.zero_point, "int64")
    else:
        value = shifted(arguments, first, sums)
    wide = "int64" if spec.fixed_point else "int32"
    if residual is not None:
        value = value + T.cast(residual, f"{wide}x{LANES}")
    low, high = (_splat(limit, wide) for limit in spec.clip)
    return T.cast(T.max(T.min(value, high), low), f"{spec.out_dtype}x{LANES}")


def _fixed_point(total: Any, multiplier: Any, shift: Any) -> Any:
    """Return floor(total * multiplier / 2**shift + 1/2) as int64: the last bit shifted out is the half."""
    product = T.cast(total, f"int64x{LANES}") * T.cast(multiplier, f"int64x{LANES}")
    one = _splat(1, "int64")
    doubled = T.shift_right(product, T.cast(shift, f"int64x{LANES}") - one)
    return T.shift_right(doubled + one, one)


def _powers_of_two(width: int) -> Iterator[tuple[int, int]]:
    """Yield (first lane, lanes) of the vectors that cover width lanes, ever narrower."""
    done = 0
    while done < width:
        count = 1 << (width - done).bit_length() - 1
        yield done, count
        done += count


def _ramp(first: Any, count: int) -> Any:
    return first if count == 1 else T.ramp(first, 1, count)


def _splat(value: int, dtype: str) -> Any:
    return T.broadcast(tirx.const(value, dtype), LANES)
