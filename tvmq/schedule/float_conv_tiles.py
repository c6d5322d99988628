"""How the loops of a float32 convolution kernel are tiled, ordered and shared between threads."""

from __future__ import annotations

import functools
from dataclasses import asdict
from math import ceil

from tvmq.schedule.conv_tiles import ConvDecision, Extents, is_shared, line_pixels, most_columns, shares
from tvmq.schedule.float_conv_spec import FloatConvSpec
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import LANES
from tvmq.schedule.padded_band import band_rows, row_size
from tvmq.schedule.register_tiles import L1_LOAD_SLOTS, L1_WEIGHT_BYTES, L2_LOAD_SLOTS, LATENCY_SLOTS
from tvmq.schedule.space import Decisions, Space

MAX_PIXELS = 14
# Vectors of 16 sums of a tile, by the registers' bits. Those of 128 bits hold none for long: without fused
# multiply-adds, and with that many products in flight, it costs little that some sums lie in memory.
SUMS = {512: 14, 256: 6, 128: 4}
NEON_SUMS = 6
LOAD_SLOTS = 0.1  # a vector of weights or a pixel, per step
ORDER_SLOTS = 0.5  # putting the inputs of a vector in order
SUM_SLOTS, TILE_SLOTS = 2, 8
SIZE = 4  # bytes of a float
CACHE_BYTES = 1 << 18  # of an image; more leave the second level before they are read again


def stays(spec: FloatConvSpec, isa: Isa, pixels: int, columns: int) -> bool:
    """Whether a tile's sums stay in registers, beside what is multiplied: see float_conv."""
    sums, most = pixels * columns, NEON_SUMS if isa.neon else SUMS[isa.bits]
    if spec.mixed:  # whose inputs are vectors, too
        return sums <= (most + 2) // 2
    held = sums * isa.parts + min(columns * isa.parts, pixels) + 1
    return sums <= most and (held < isa.registers or (sums <= SUMS[isa.bits] and isa.bits == 128))


def fits(spec: FloatConvSpec, column_tile: int) -> bool:
    """Whether a tile so many vectors wide sees the same inputs, or knows those of each vector."""
    if spec.geometry.groups > 1 and not spec.mixed:
        return spec.vectors_per_group % column_tile == 0
    return column_tile <= spec.column_groups


def float_conv_space(spec: FloatConvSpec, isa: Isa, threads: int) -> Space:
    """Return what float_conv_prim_func may be told; the default wastes fewest issue slots."""
    default = choose_float_conv(spec, isa, threads)
    columns = tuple(each for each in range(1, most_columns(spec) + 1) if fits(spec, each))
    some = {1, threads, 2 * threads}

    def valid(decisions: Decisions) -> bool:
        return stays(spec, isa, int(decisions["pixel_tile"]), int(decisions["column_tile"]))

    return Space(
        {
            "pixel_tile": tuple(range(1, min(line_pixels(spec), MAX_PIXELS) + 1)),
            "column_tile": columns,
            "outer": ("columns", "rows"),
            "bands": tuple(sorted(some | {default.bands, 2 * default.bands})),
            "parts": tuple(sorted(some | {default.parts})),
            "prefetch": (False, True),
            "parallel": (False, True) if threads > 1 else (default.parallel,),
        },
        asdict(default),
        valid,
    )


@functools.cache
def choose_float_conv(spec: FloatConvSpec, isa: Isa, threads: int) -> ConvDecision:
    """Return the decision that wastes fewest issue slots; of equals, the one that loads least per product."""
    tiles = [
        (pixels, columns)
        for pixels in range(1, min(line_pixels(spec), MAX_PIXELS) + 1)
        for columns in range(1, most_columns(spec) + 1)
        if stays(spec, isa, pixels, columns) and fits(spec, columns)
    ]
    pixels, columns = min(tiles, key=lambda tile: (_slots(spec, *tile), 1 / tile[0] + 1 / tile[1]))
    extents = Extents.of(spec, pixels, columns)
    bands, parts = shares(spec, extents, threads, 1)
    parallel = is_shared(spec, threads, 1) and extents.images * bands * parts > 1
    bands = _cached(spec, extents, bands)
    return ConvDecision(
        pixel_tile=pixels,
        column_tile=columns,
        outer="rows" if spec.mixed else "columns",  # neighbouring channels share cache lines
        bands=bands,
        parts=parts,
        parallel=parallel,
    )


def _slots(spec: FloatConvSpec, pixels: int, columns: int) -> float:
    """Return the issue slots of the whole kernel."""
    extents, sums = Extents.of(spec, pixels, columns), pixels * columns
    steps = spec.geometry.kernel_rows * spec.geometry.taps * spec.steps
    cached = columns * steps * LANES * SIZE <= L1_WEIGHT_BYTES
    loads = (L1_LOAD_SLOTS if cached else L2_LOAD_SLOTS) * columns
    step = max(sums, LATENCY_SLOTS, loads) + LOAD_SLOTS * (pixels + columns)
    step += ORDER_SLOTS * sums if spec.mixed else 0
    tiles = extents.images * extents.lines * extents.tiles * extents.columns
    return tiles * (steps * step + SUM_SLOTS * sums + TILE_SLOTS)


def _cached(spec: FloatConvSpec, extents: Extents, bands: int) -> int:
    """Return a multiple of bands that moves fewest bytes into the second level of the cache."""
    g = spec.geometry
    weights = extents.columns * g.kernel_rows * g.taps * spec.steps * LANES * SIZE

    def moved(more: int) -> float:
        lines = ceil(extents.lines / (bands * more))
        rows = lines * extents.width / g.columns if spec.flat else band_rows(g, lines)
        band = rows * row_size(g) * SIZE
        again = extents.columns if band > CACHE_BYTES else 1
        return bands * more * (band * again + weights)

    return bands * min(range(1, max(extents.lines // bands, 1) + 1), key=moved)
