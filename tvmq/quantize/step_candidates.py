"""Storages of a value that might be better than those of statistics."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tvmq.calibrate.grids import affine_parameters
from tvmq.formats import QuantParams

FACTORS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36)  # of the range seen, at either end
PLACES = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the zero point of a uint8 copy, times what it was
EXPONENTS = (-2, -1, 0, 1)  # of the scale of a uint8 copy, around what statistics chose


def narrowed(low: float, high: float, own: QuantParams, bits: int) -> Iterator[QuantParams]:
    """Yield own, then storages of parts of the range from low to high, of so many bits."""
    yield own
    low, high = min(low, 0.0), max(high, 0.0)
    for at_low, at_high in product(FACTORS, FACTORS):
        if (low == 0 and at_low != 1) or (high == 0 and at_high != 1):
            continue
        scale, zero = affine_parameters(np.array([low * at_low, high * at_high]), bits, False)
        yield QuantParams(float(np.float32(scale)), int(zero), own.dtype, own.limits)


def moved(trunk: QuantParams, own: QuantParams) -> Iterator[QuantParams]:
    """Yield own, then uint8 storages that a shift reaches from the trunk, zero points in several places."""
    yield own
    for step in EXPONENTS:
        scale = own.scale * 2.0**step
        if scale < trunk.scale:
            continue
        centre = own.zero_point / 2.0**step
        for zero in sorted({round(centre * factor) for factor in PLACES} | {(own.high + 1) // 2}):
            yield QuantParams(scale, int(np.clip(zero, own.low, own.high)), own.dtype, own.limits)
