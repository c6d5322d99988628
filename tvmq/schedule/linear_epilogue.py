"""The `finish` block of the integer linear kernels: int32 sums to stored outputs, 16 or 64 at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - the name TVM uses

from tvmq.numerics import INTEGER_RANGE
from tvmq.schedule.linear_spec import DEPTH, LANES, TABLE_SIZE, LinearSpec
from tvmq.schedule.vectors import prefetch, shuffle
from tvmq.schedule.x86_intrinsics import concat, lookup
from tvmq.schedule.x86_isa import Isa

PER_CHANNEL = ("bias", "scale", "multiplier", "shift")
PACK_BYTES = {"uint8": "llvm.x86.avx512.packuswb.512", "int8": "llvm.x86.avx512.packsswb.512"}
PACK_WORDS = "llvm.x86.avx512.packssdw.512"


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
class Finish:
    """Emits the block; arguments and total are the buffers of the function that is being built.

    total is int32 [rows, groups, 16], the sums without bias. A step is one or more groups of a row.
    """

    spec: LinearSpec
    arguments: dict[str, Any]
    total: Any
    isa: Isa
    ahead: int = 0  # how many groups further on weights are prefetched; 0: none are

    @property
    def per_step(self) -> int:
        """Groups of a step."""
        return groups_per_step(self.spec, self.isa)

    @property
    def width(self) -> int:
        """Channels of a step."""
        return self.per_step * LANES

    def emit(self) -> None:
        """Append the block to the function."""
        steps = self.spec.groups // self.per_step
        last_width = self.spec.outputs - (steps - 1) * self.width
        with T.grid(self.spec.rows, steps) as (i, j), T.sblock("finish"):
            row, step = T.axis.spatial(self.spec.rows, i), T.axis.spatial(steps, j)
            self._regions(row, step)
            if last_width == self.width:
                self._store(row, step, self.width)
                return
            with T.If(step < steps - 1):
                with T.Then():
                    self._store(row, step, self.width)
                with T.Else():
                    self._store(row, step, last_width)

    def _regions(self, row: Any, step: Any) -> None:
        per_step, first = self.per_step, step * self.width
        reads = [self.total[row, step * per_step : step * per_step + per_step, 0:LANES]]
        for name, buffer in self.arguments.items():
            if name in PER_CHANNEL:
                reads.append(buffer[first : first + self.width])
            elif name == "residual":
                reads.append(buffer[row, first : first + self.width])
            elif name == "table":
                reads.append(buffer[0:TABLE_SIZE])
        T.reads(*reads)
        T.writes(self.arguments["out"][row, first : first + self.width])

    def _store(self, row: Any, step: Any, width: int) -> None:
        """Store the first `width` channels of the step; whole vectors where nothing stands in the way."""
        self._prefetch(row, step)
        out, first = self.arguments["out"], step * self.width
        residual = read_residual(self.spec, self.arguments, row, first, width, self.width)
        values = self._values(row, step, residual)
        if self.spec.table:
            clipped = self._staged(values)
            values = lookup(self.isa, self.arguments["table"], clipped[T.ramp(0, 1, self.width)], self.width)
        if width == self.width:
            T.buffer_store(out, values, [row, T.ramp(first, 1, width)])
            return
        staged = self._staged(values)
        with T.serial(width) as lane:
            T.buffer_store(out, staged[lane], [row, first + lane])

    def _staged(self, values: Any) -> Any:
        """Return a local buffer that holds the step's values."""
        staged = T.sblock_alloc_buffer((self.width,), self.spec.out_dtype)
        T.buffer_store(staged, values, [T.ramp(0, 1, self.width)])
        return staged

    def _prefetch(self, row: Any, step: Any) -> None:
        """Ask for the row's share of the weights of the tile that comes after this one.

        A model's weights do not stay in L2 from one run to the next: without this, the first rows of each
        tile wait for L3, 5 to 10 % of the whole kernel's time.
        """
        weight, depths = self.arguments["weight"], self.spec.inputs // DEPTH
        share = ceil(depths / self.spec.rows)
        if not self.ahead or share > MOST_LINES:
            return
        for group in range(self.per_step):
            later = T.min(step * self.per_step + group + self.ahead, self.spec.groups - 1)
            for line in range(share):
                prefetch(weight, (later, T.min(row * share + line, depths - 1), 0, 0))

    def _values(self, row: Any, step: Any, residual: Any) -> Any:
        per_step = self.per_step
        if per_step == 1:
            return self._group(row, step, residual)
        if packs(self.spec, self.isa):
            groups = [step * per_step + i for i in range(per_step)]
            return self._packed([shifted(self.arguments, g, self._sums(row, g)) for g in groups])
        # The sums are read group by group, as they were written: wider loads would push them out of
        # their registers.
        return concat([self._group(row, step * per_step + i, None) for i in range(per_step)], LANES)

    def _packed(self, groups: list[Any]) -> Any:
        """Return 64 requantized sums as clipped bytes; int16, between the two, holds both limits."""
        dtype = self.spec.out_dtype
        words = [T.call_llvm_pure_intrin("int16x32", PACK_WORDS, groups[at], groups[at + 1]) for at in (0, 2)]
        packed = T.call_llvm_pure_intrin(f"{dtype}x64", PACK_BYTES[dtype], *words)
        # The packs work inside lanes of 128 bits: dword 4*lane + m holds group m's channels from 4*lane on.
        order = [4 * lane + m for m in range(4) for lane in range(4)]
        values = T.reinterpret(f"{dtype}x64", shuffle([T.reinterpret("int32x16", packed)], order))
        if self.spec.clip == INTEGER_RANGE[dtype]:
            return values
        low, high = (T.broadcast(tirx.const(limit, dtype), 64) for limit in self.spec.clip)
        return T.max(T.min(values, high), low)

    def _group(self, row: Any, group: Any, residual: Any) -> Any:
        return requantized(self.spec, self.arguments, group, self._sums(row, group), residual)

    def _sums(self, row: Any, group: Any) -> Any:
        return self.total[row, group, T.ramp(0, 1, LANES)]


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
    with T.serial(width) as lane:
        T.buffer_store(staged, residual[row, first + lane], [lane])
    return staged[T.ramp(0, 1, padded)]


def shifted(arguments: dict[str, Any], group: Any, sums: Any) -> Any:
    """Return a group's 16 requantized sums, int32, before they are clipped."""
    lanes = T.ramp(group * LANES, 1, LANES)
    return T.shift_right(sums + arguments["bias"][lanes], arguments["shift"][lanes])


def requantized(spec: LinearSpec, arguments: dict[str, Any], group: Any, sums: Any, residual: Any) -> Any:
    """Return a group's 16 outputs before the table, in the output's dtype; sums int32x16, without bias."""
    lanes = T.ramp(group * LANES, 1, LANES)
    channel = {name: arguments[name][lanes] for name in PER_CHANNEL if name in arguments}
    total = sums + channel["bias"]
    if spec.out_dtype == "float32":
        return T.cast(total, f"float32x{LANES}") * channel["scale"]
    if spec.fixed_point:
        value = _fixed_point(total, channel["multiplier"], channel["shift"])
        value = value + _splat(spec.zero_point, "int64")
    else:
        value = shifted(arguments, group, sums)
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


def _splat(value: int, dtype: str) -> Any:
    return T.broadcast(tirx.const(value, dtype), LANES)
