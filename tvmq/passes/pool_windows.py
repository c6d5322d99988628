"""The windows of poolings, and of means over axes that lie side by side, as if they were convolutions."""

from __future__ import annotations

import math
from typing import Any

from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.layouts import RowsLayout

POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
MOST_PIXELS = 1 << 15  # of a mean: the sum of so many 16-bit numbers fits 32 bits


def window_of(call: Any) -> ConvGeometry | None:
    """Return the geometry of a pooling or a mean, each channel on its own; None where it has no windows.

    None too where windows count differently at the border.
    """
    name = call.op.name.rsplit(".", 1)[-1]
    shape, out = (tuple(int(d) for d in expr.ty.shape) for expr in (call.args[0], call))
    if name == "mean":
        layouts = mean_layouts(call)
        if layouts is None:
            return None
        batch, (inner, channels) = shape[0], layouts[0].matrix
        return _geometry((batch, channels, inner // batch, 1), (inner // batch, 1))
    if str(call.attrs.layout) != "NCHW":
        return None
    if name == "adaptive_avg_pool2d":
        if any(size % parts for size, parts in zip(shape[2:], out[2:], strict=True)):
            return None
        window = (shape[2] // out[2], shape[3] // out[3])
        return _checked(_geometry(shape, window, window), out)
    attrs = call.attrs
    window = (int(attrs.pool_size[0]), int(attrs.pool_size[1]))
    strides = (int(attrs.strides[0]), int(attrs.strides[1]))
    padding = tuple(int(p) for p in attrs.padding)
    partial = name == "avg_pool2d" and any(padding) and not bool(attrs.count_include_pad)
    if partial or any(int(d) != 1 for d in attrs.dilation):
        return None
    return _checked(_geometry(shape, window, strides, padding), out)


def mean_layouts(call: Any) -> tuple[RowsLayout, RowsLayout] | None:
    """Return how a mean's operand and its result are stored, None unless it is over whole rows of channels.

    Its axes lie side by side: behind the batch (tokens, channels last) or at the end (channels first).
    """
    if call.op.name != "relax.mean" or call.attrs.axis is None:
        return None
    shape = tuple(int(d) for d in call.args[0].ty.shape)
    axes = sorted(int(a) % len(shape) for a in call.attrs.axis)
    first, last = axes[0], axes[-1]
    if axes != list(range(first, last + 1)) or first == 0 or len(axes) == len(shape) - 1:
        return None
    reduced = shape[first : last + 1]
    if math.prod(reduced) > MOST_PIXELS:
        return None
    kept = (1,) * (len(reduced) if bool(call.attrs.keepdims) else 0)
    if first == 1:
        position, channel = 1 + len(reduced), shape[last + 1 :]
        return RowsLayout((shape[0], *reduced), position, channel), RowsLayout(
            (shape[0], *kept), 1 + len(kept), channel
        )
    if last == len(shape) - 1:
        channel = shape[1:first]
        return RowsLayout((shape[0], *reduced), 1, channel), RowsLayout((shape[0], *kept), 1, channel)
    return None


def _geometry(
    shape: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0, 0, 0),
) -> ConvGeometry:
    batch, channels, rows, columns = shape
    top, left, bottom, right = padding
    return ConvGeometry(
        batch=batch,
        rows=rows,
        columns=columns,
        channels=channels,
        outputs=channels,
        groups=channels,
        kernel_rows=window[0],
        kernel_columns=window[1],
        stride_rows=strides[0],
        stride_columns=strides[1],
        top=top,
        left=left,
        bottom=bottom,
        right=right,
    )


def _checked(geometry: ConvGeometry, out: tuple[int, ...]) -> ConvGeometry | None:
    """Return the geometry if it gives the result's size, which windows cut short by ceil_mode do not."""
    few = geometry.kernel_rows * geometry.kernel_columns <= MOST_PIXELS
    return geometry if few and (geometry.out_rows, geometry.out_columns) == out[2:] else None
