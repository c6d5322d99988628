"""The plots of the page: numbers to the paths of inline SVG, in units of the plot's own box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmq.analysis.records import SiteError, Spread

WIDTH, HEIGHT = 320.0, 96.0
MARGIN = 0.04  # of the width, on both sides of everything that a histogram shows
MOST_CHANNELS = 96  # points of a curve
FULL_DB = 60.0  # the top of the curve over all sites
OVERVIEW_HEIGHT = 160.0


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """Counts by the logarithm, and where the range of the codes begins and ends, unless far outside."""

    path: str
    marks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ChannelPlot:
    """The sizes of all channels by their logarithm, the widest first, before and after balancing."""

    before: str
    after: str
    largest: float
    smallest: float
    channels: int


@dataclass(frozen=True, slots=True)
class OverviewPlot:
    """SQNR along the model: with everything before quantized, and of each site alone."""

    together: str
    alone: tuple[tuple[float, float], ...]
    lines: tuple[tuple[float, str], ...]  # height and text of the grid


def histogram(spread: Spread) -> HistogramPlot:
    """Return the plot of a stored tensor."""
    left, right = min(spread.edges[0], spread.low), max(spread.edges[1], spread.high)
    # An int16 range is much wider than what it holds: then only the values are shown.
    span = (spread.edges[1] - spread.edges[0]) or 1.0
    left, right = max(left, spread.edges[0] - span), min(right, spread.edges[1] + span)
    margin = MARGIN * (right - left)
    left, right = left - margin, right + margin

    def across(value: float) -> float:
        return WIDTH * (min(max(value, left), right) - left) / (right - left)

    top = math.log1p(max(spread.counts, default=0)) or 1.0
    edges = np.linspace(*spread.edges, len(spread.counts) + 1)
    path = "".join(
        f"M{across(a):.1f} {HEIGHT:g}V{HEIGHT * (1 - math.log1p(count) / top):.1f}H{across(b):.1f}V{HEIGHT:g}"
        for a, b, count in zip(edges[:-1], edges[1:], spread.counts, strict=True)
        if count
    )
    marks = (round(across(end), 1) for end in (spread.low, spread.high) if left < end < right)
    return HistogramPlot(path, tuple(marks))


def channels(site: SiteError) -> ChannelPlot | None:
    """Return the plot of a site's input channels, None for a site without."""
    after = _sorted(site.channels_after)
    before = _sorted(site.channels_before)
    if len(after) < 2 or after[0] <= 0:
        return None
    both = after + before
    largest = max(both)
    smallest = max(min(both), largest * 1e-4)

    def curve(sizes: Sequence[float]) -> str:
        if not sizes:
            return ""
        taken = sizes
        if len(sizes) > MOST_CHANNELS:
            taken = [sizes[round(i * (len(sizes) - 1) / (MOST_CHANNELS - 1))] for i in range(MOST_CHANNELS)]
        span = math.log(largest / smallest) or 1.0
        heights = [HEIGHT * math.log(largest / max(size, smallest)) / span for size in taken]
        return _line([WIDTH * i / (len(taken) - 1) for i in range(len(taken))], heights)

    changed = not np.allclose(before, after, rtol=0.01) if len(before) == len(after) else bool(before)
    return ChannelPlot(curve(before) if changed else "", curve(after), largest, smallest, len(after))


def overview(sites: Sequence[SiteError]) -> OverviewPlot:
    """Return the curve over all sites in graph order."""
    step = WIDTH * 3 / max(len(sites) - 1, 1)
    places = [i * step for i in range(len(sites))]
    alone = tuple(
        (round(x, 1), round(_depth(site.alone.sqnr_db), 1))
        for x, site in zip(places, sites, strict=True)
        if site.alone is not None
    )
    lines = tuple((_depth(decibel), f"{decibel:g} dB") for decibel in (0.0, 20.0, 40.0, 60.0))
    return OverviewPlot(_line(places, [_depth(site.together.sqnr_db) for site in sites]), alone, lines)


def _depth(decibel: float) -> float:
    return OVERVIEW_HEIGHT * (1 - min(max(decibel, 0.0), FULL_DB) / FULL_DB)


def _line(across: Sequence[float], down: Sequence[float]) -> str:
    points = (f"{x:.1f} {y:.1f}" for x, y in zip(across, down, strict=True))
    return "M" + "L".join(points)


def _sorted(sizes: Sequence[float]) -> list[float]:
    return sorted(sizes, reverse=True)
