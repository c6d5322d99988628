"""How the loops of a convolution kernel are tiled, ordered and shared between threads."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, dataclass
from math import ceil
from typing import Protocol

from tvmq import bit_planes
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.conv_spec import ConvSpec, in_pairs
from tvmq.schedule.dots import most_groups
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_epilogue import groups_per_step
from tvmq.schedule.linear_spec import DEPTH, LANES
from tvmq.schedule.register_tiles import (
    L1_LOAD_SLOTS,
    L1_WEIGHT_BYTES,
    L2_LOAD_SLOTS,
    LATENCY_SLOTS,
    MIN_PARALLEL_MACS,
)
from tvmq.schedule.space import Decisions, Space

MAX_PIXELS = 14
# The next tile's products fill the gaps of this one's epilogue only as far as a CPU looks ahead: what the
# epilogue costs grows faster than its sums, and small tiles win. Fitted to all tiles of the convolutions of
# ResNet-50 and MobileNetV2: 2 % slower than the best in the mean.
LOAD_SLOTS = 0.1  # a register of weights or a pixel, per step
SUM_SLOTS, SUM_SQUARED_SLOTS = 1, 0.2
MAX_SUMS = 14  # of 16 outputs: above, LLVM keeps some in memory
MAX_COLUMNS = 4
FEW_PIXELS = 2  # and fewer wait for weights: then more columns are read side by side
# Packed weights: what bringing those of a group to a register costs per step, what reading a pixel does, and
# the share of the registers that sums may take, so that masks and vectors of the next steps have theirs.
UNPACK_SLOTS, PIXEL_SLOTS = 1, 0.25
PACKED_SHARE = 0.75
UNITS_PER_THREAD = 4
COPY_SHARE = 0.01  # of the whole kernel's time: what copying an image into its padding takes
LONE_TABLE_SLOTS = 8  # what a group costs more that is looked up alone
LONE_PACK_SLOTS = 0.5  # and one that is packed alone
PREFETCH_BYTES = 1 << 14  # weights above this leave the second cache level between two runs of a model


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvDecision:
    """A register tile is pixel_tile pixels of one line times column_tile groups of 16 outputs."""

    pixel_tile: int
    column_tile: int
    outer: str = "columns"  # "columns": a weight tile stays while all pixels pass; "rows": the reverse
    bands: int = 1  # an image's lines are cut into this many parts,
    parts: int = 1  # the column tiles into this many: units of work are image x band x part
    prefetch: bool = False  # ask for the next column tile's weights while this one's are used
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.outer not in ("columns", "rows"):
            raise ValueError(f"ConvDecision: outer is {self.outer!r}, not 'columns' or 'rows'")
        if min(self.pixel_tile, self.column_tile, self.bands, self.parts) < 1:
            raise ValueError(f"ConvDecision: sizes are at least 1, got {self}")


class Windows(Protocol):
    """What the loops of a kernel whose window passes over an image follow from; see ConvSpec."""

    @property
    def geometry(self) -> ConvGeometry: ...

    @property
    def column_groups(self) -> int: ...

    @property
    def direct(self) -> bool: ...

    @property
    def flat(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Extents:
    """The loops of a kernel under one decision."""

    images: int
    lines: int  # of an image; flat: tiles of pixels
    width: int  # pixels of a line; flat: of everything
    tiles: int  # pixel tiles of a line
    columns: int  # column tiles

    @classmethod
    def of(cls, spec: Windows, pixel_tile: int, column_tile: int) -> Extents:
        """Return the loops for a register tile."""
        geometry, columns = spec.geometry, ceil(spec.column_groups / column_tile)
        if spec.flat:
            return cls(1, ceil(geometry.pixels / pixel_tile), geometry.pixels, 1, columns)
        tiles = ceil(geometry.out_columns / pixel_tile)
        return cls(geometry.batch, geometry.out_rows, geometry.out_columns, tiles, columns)


def conv_space(spec: ConvSpec, isa: Isa, threads: int) -> Space:
    """Return what conv_prim_func may be told; the default wastes fewest issue slots."""
    default = choose_conv(spec, isa, threads)
    shares = {1, threads, 2 * threads}

    def valid(decisions: Decisions) -> bool:
        pixels, columns = int(decisions["pixel_tile"]), int(decisions["column_tile"])
        return (pixels + pixels % 2 * in_pairs(spec, isa)) * columns <= most_groups(isa)

    return Space(
        {
            "pixel_tile": tuple(range(1, min(line_pixels(spec), MAX_PIXELS) + 1)),
            "column_tile": tuple(
                columns for columns in range(1, most_columns(spec) + 1) if fits(spec, columns)
            ),
            "outer": ("columns", "rows"),
            "bands": tuple(sorted(shares | {default.bands})),
            "parts": tuple(sorted(shares | {default.parts})),
            "prefetch": (False, True),
            "parallel": (False, True) if threads > 1 else (default.parallel,),
        },
        asdict(default),
        valid,
    )


@functools.cache
def choose_conv(spec: ConvSpec, isa: Isa, threads: int) -> ConvDecision:
    """Return the decision that wastes fewest issue slots; of equals, the one that loads least per product."""
    registers = int(most_groups(isa) * PACKED_SHARE) if spec.packed else min(most_groups(isa), MAX_SUMS)
    pairs = in_pairs(spec, isa)  # of pixels, all of whose registers two columns would take
    tiles = [
        (pixels, columns)
        for pixels in range(1, min(line_pixels(spec), MAX_PIXELS, registers) + 1)
        for columns in range(1, most_columns(spec) + 1)
        if pixels * columns <= registers and fits(spec, columns) and not (pairs and columns > 1)
    ]
    pixels, columns = min(tiles, key=lambda tile: (_slots(spec, isa, *tile), 1 / tile[0] + 1 / tile[1]))
    extents = Extents.of(spec, pixels, columns)
    bands, parts = shares(spec, extents, threads)
    weights = (
        spec.product.groups * spec.geometry.kernel_rows * spec.geometry.taps * spec.registers * LANES * DEPTH
    )
    return ConvDecision(
        pixel_tile=pixels,
        column_tile=columns,
        bands=bands,
        parts=parts,
        prefetch=weights > PREFETCH_BYTES,
        parallel=is_shared(spec, threads) and extents.images * bands * parts > 1,
    )


def step_groups(spec: ConvSpec, isa: Isa, column_tile: int) -> int:
    """Return how many groups of a column tile are requantized together."""
    together = groups_per_step(spec.product, isa)
    return 1 if column_tile % together else together


def line_pixels(spec: Windows) -> int:
    """Return the pixels of a line."""
    return spec.geometry.pixels if spec.flat else spec.geometry.out_columns


def most_columns(spec: Windows) -> int:
    """Return the most groups of a column tile."""
    return MAX_COLUMNS if line_pixels(spec) > FEW_PIXELS else 2 * MAX_COLUMNS


def fits(spec: ConvSpec, column_tile: int) -> bool:
    """Whether the outputs of every column tile see the same channels."""
    if spec.geometry.groups > 1:
        return spec.lanes_per_group % column_tile == 0
    return column_tile <= spec.product.groups


def _slots(spec: ConvSpec, isa: Isa, pixels: int, columns: int) -> float:
    """Return the issue slots of the whole kernel."""
    extents = Extents.of(spec, pixels, columns)
    segments = spec.geometry.kernel_rows * spec.geometry.taps
    stays = columns * segments * spec.registers * LANES * DEPTH <= L1_WEIGHT_BYTES
    loads = (L1_LOAD_SLOTS if stays else L2_LOAD_SLOTS) * columns * spec.weight_bits / bit_planes.BYTE
    step = max(pixels * columns, LATENCY_SLOTS, loads)
    if spec.packed:
        step += UNPACK_SLOTS * columns + PIXEL_SLOTS * pixels
    else:
        step += LOAD_SLOTS * (columns + pixels)
    alone = step_groups(spec, isa, columns) < groups_per_step(spec.product, isa)
    group = (LONE_TABLE_SLOTS if spec.product.table else LONE_PACK_SLOTS) if alone else 0
    tiles, sums = extents.images * extents.lines * extents.tiles * extents.columns, pixels * columns
    return tiles * (segments * spec.steps * step + (SUM_SLOTS + group) * sums + SUM_SQUARED_SLOTS * sums**2)


def is_shared(spec: Windows, threads: int, lane_products: int = DEPTH) -> bool:
    """Whether other threads have taken their share before one is done.

    lane_products: how many multiply-accumulates one of 16 lanes does in an instruction.
    """
    g = spec.geometry
    macs = g.pixels * spec.column_groups * LANES * g.group_inputs * g.kernel_rows * g.kernel_columns
    return threads > 1 and macs * (DEPTH // lane_products) >= MIN_PARALLEL_MACS


def shares(spec: Windows, extents: Extents, threads: int, lane_products: int = DEPTH) -> tuple[int, int]:
    """Return into how many bands and parts to cut the work, so that threads end together."""
    if not is_shared(spec, threads, lane_products):
        return 1, 1
    most = UNITS_PER_THREAD * threads

    def cost(share: tuple[int, int]) -> tuple[float, int]:
        bands, parts = share
        units = extents.images * bands * parts
        lines, columns = ceil(extents.lines / bands), ceil(extents.columns / parts)
        work = lines * columns / (extents.lines * extents.columns)
        copied = 0.0 if spec.direct else COPY_SHARE * lines / extents.lines
        return ceil(units / threads) * (work + copied), units

    every = itertools.product(
        range(1, min(extents.lines, most) + 1), range(1, min(extents.columns, most) + 1)
    )
    return min((s for s in every if s[0] * s[1] * extents.images <= max(most, extents.images)), key=cost)
