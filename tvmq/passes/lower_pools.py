"""Lower pooling and means over pixels or tokens: windows of rows of channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvmq import numerics
from tvmq.formats import QuantParams
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.layouts import RowsLayout
from tvmq.passes.lowering_values import Emitter, Pending, QdqCall, Stored
from tvmq.passes.pool_composite import MAX, MEAN, Pooling, pool
from tvmq.passes.pool_windows import mean_layouts, window_of


def pooling(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending pooling of a stored value."""
    x = source.operands[0]
    return Pending("pool", source) if isinstance(x, Stored) and window_of(source.call) is not None else None


def quantize_pool(emit: Emitter, pending: Pending, out: QuantParams) -> Stored | None:
    """Emit the pooling; None for a largest that is not stored as its window is, in limits no wider."""
    source = pending.source
    x: Stored = source.operands[0]
    geometry = window_of(source.call)
    assert geometry is not None  # pooling saw to it
    layouts = mean_layouts(source.call)
    before = (
        layouts[0]
        if layouts
        else RowsLayout((geometry.batch, geometry.rows, geometry.columns), 1, (geometry.channels,))
    )
    after = (
        layouts[1]
        if layouts
        else RowsLayout((geometry.batch, geometry.out_rows, geometry.out_columns), 1, (geometry.channels,))
    )
    how = Pooling(operation=MAX, in_dtype=x.params.dtype, out_dtype=out.dtype)
    if source.call.op.name != "relax.nn.max_pool2d":
        how = _mean(how, geometry, x.params, out)
    elif not x.params.aligned(out) or not (out.low <= x.params.low and x.params.high <= out.high):
        return None
    rows = emit.rows(emit.with_layout(x, before))
    return Stored(out, after, rows_var=emit.composite(pool(source.name, how, geometry), [rows], source.name))


def _mean(how: Pooling, geometry: ConvGeometry, x: QuantParams, out: QuantParams) -> Pooling:
    count = geometry.kernel_rows * geometry.kernel_columns
    ratio = float(np.float32(x.scale)) / float(np.float32(out.scale)) / count
    multiplier, shift = (int(v) for v in numerics.fixed_point_multiplier(np.array(ratio)))
    return replace(
        how,
        operation=MEAN,
        zero_point=x.zero_point,
        multiplier=multiplier,
        shift=shift,
        out_zero_point=out.zero_point,
        low=out.low,
        high=out.high,
    )
