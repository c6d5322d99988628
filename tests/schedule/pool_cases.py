"""Random poolings and what numerics makes of them."""

from __future__ import annotations

import numpy as np

from tvmq import numerics
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import MAX, MEAN, Pooling


def pooling_of(operation: str, in_dtype: str, geometry: ConvGeometry, out_dtype: str = "uint8") -> Pooling:
    """Return a largest, or a mean whose results spread over the whole range of out_dtype and past it."""
    if operation == MAX:
        return Pooling(operation=MAX, in_dtype=in_dtype, out_dtype=in_dtype)
    widths = [np.ptp(numerics.INTEGER_RANGE[dtype]) for dtype in (out_dtype, in_dtype)]
    count = geometry.kernel_rows * geometry.kernel_columns
    multiplier, shift = numerics.fixed_point_multiplier(np.array(2.0 * widths[0] / widths[1] / count))
    return Pooling(
        operation=MEAN,
        in_dtype=in_dtype,
        out_dtype=out_dtype,
        zero_point=5,
        multiplier=int(multiplier),
        shift=int(shift),
        out_zero_point=9,
    )


def pooled(pooling: Pooling, geometry: ConvGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Return x [batch * rows * columns, channels] and the pooling of it."""
    g = geometry
    low, high = numerics.INTEGER_RANGE[pooling.in_dtype]
    shape = (g.batch, g.rows, g.columns, g.channels)
    x = np.random.default_rng(0).integers(low, high + 1, shape).astype(pooling.in_dtype)
    window, strides = (g.kernel_rows, g.kernel_columns), (g.stride_rows, g.stride_columns)
    padding = (g.top, g.left, g.bottom, g.right)
    if pooling.operation == MAX:
        y = numerics.max_pool(x, window, strides, padding)
    else:
        y = numerics.mean_pool(
            x,
            window,
            strides,
            padding,
            zero_point=pooling.zero_point,
            multiplier=pooling.multiplier,
            shift=pooling.shift,
            out_zero_point=pooling.out_zero_point,
            dtype=pooling.out_dtype,
        ).clip(*pooling.clip)
    return x.reshape(-1, g.channels), y.reshape(-1, g.channels)
