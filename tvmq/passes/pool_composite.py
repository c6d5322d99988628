"""Build the integer function of a pooling: the largest or the mean of windows of pixels, by channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.passes.composite_body import Body, integer, tensor_type
from tvmq.passes.conv_geometry import ConvGeometry

MAX, MEAN = "max", "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """What is done to a window; the numbers, those of numerics.mean_pool, are of a mean alone."""

    operation: str
    in_dtype: str
    out_dtype: str
    zero_point: int = 0
    multiplier: int = 0
    shift: int = 0
    out_zero_point: int = 0
    low: int | None = None  # where a mean is clipped, inside of out_dtype's range; None: at its end
    high: int | None = None

    @property
    def clip(self) -> tuple[int, int]:
        """Return the least and the greatest number that a mean can be."""
        low, high = numerics.INTEGER_RANGE[self.out_dtype]
        return low if self.low is None else self.low, high if self.high is None else self.high


def pool(site: str, pooling: Pooling, geometry: ConvGeometry) -> relax.Function:
    """Return f(x [batch * rows * columns, channels]) -> [pixels, channels]: numerics.max_pool or mean_pool.

    geometry is that of a convolution of each channel with its own window.
    """
    g = geometry
    x = relax.Var("x", tensor_type((g.batch * g.rows * g.columns, g.channels), pooling.in_dtype))
    body = Body()
    data = body(op.reshape(x, (g.batch, g.rows, g.columns, g.channels)))
    if pooling.operation == MAX:
        lowest = numerics.INTEGER_RANGE[pooling.in_dtype][0]
        y = _over_windows(body, _padded(body, data, g, lowest), g, op.maximum)
    else:
        centred = body(op.subtract(body(op.astype(data, "int32")), integer(pooling.zero_point)))
        y = _mean(body, centred, g, pooling)
    y = body(op.reshape(y, (g.pixels, g.channels)))
    low, high = pooling.clip
    attrs = {**asdict(pooling), "low": low, "high": high, **g.attrs()}
    return body.finish([x], y, "pool", site, attrs)


def _mean(body: Body, centred: relax.Var, g: ConvGeometry, pooling: Pooling) -> relax.Var:
    if (g.out_rows, g.out_columns) == (1, 1) and not g.padded:  # many pixels, and one sum
        sums = body(op.sum(centred, axis=[1, 2], keepdims=True))
    else:
        sums = _over_windows(body, _padded(body, centred, g, 0), g, op.add)
    product = body(op.multiply(body(op.astype(sums, "int64")), integer(pooling.multiplier, "int64")))
    half = integer(1 << (pooling.shift - 1), "int64")
    moved = body(op.right_shift(body(op.add(product, half)), integer(pooling.shift, "int64")))
    stored = body(op.add(moved, integer(pooling.out_zero_point, "int64")))
    clipped = body(op.clip(stored, *pooling.clip))
    return body(op.astype(clipped, pooling.out_dtype))


def _padded(body: Body, data: relax.Var, g: ConvGeometry, value: int) -> relax.Var:
    if not g.padded:
        return data
    return body(op.nn.pad(data, [0, 0, g.top, g.bottom, g.left, g.right, 0, 0], "constant", value))


def _over_windows(
    body: Body, data: relax.Var, g: ConvGeometry, operation: Callable[[Any, Any], Any]
) -> relax.Var:
    """Emit operation over what each position of the window sees: [B, out rows, out columns, C]."""
    strides, size = [g.stride_rows, g.stride_columns], (g.out_rows, g.out_columns)
    result = None
    for tap in range(g.kernel_rows * g.kernel_columns):
        begin = divmod(tap, g.kernel_columns)
        end = [b + (n - 1) * s + 1 for b, n, s in zip(begin, size, strides, strict=True)]
        seen = body(op.strided_slice(data, axes=[1, 2], begin=list(begin), end=end, strides=strides))
        result = seen if result is None else body(operation(result, seen))
    return result
