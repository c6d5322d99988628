"""Lower depthwise convolutions: each channel has its own few weights, and no matrix holds them."""

from __future__ import annotations

import numpy as np

from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.passes import composites
from tvmq.passes.integer_parameters import linear_parameters
from tvmq.passes.layouts import RowsLayout
from tvmq.passes.lower_products import weight_of
from tvmq.passes.lowering_values import Emitter, Pending, QdqCall, Stored, clip_range, constant
from tvmq.passes.patches import is_depthwise, output_size, padded_nhwc


def depthwise(emit: Emitter, source: QdqCall) -> Pending | None:
    """Return the pending convolution of stored values and a weight constant."""
    x, weight = source.operands
    quantized = weight_of(weight, 0)
    attrs = source.call.attrs
    if not isinstance(x, Stored) or quantized is None or any(int(d) != 1 for d in attrs.dilation):
        return None
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NCHW", "OIHW"):
        return None
    return (
        Pending("depthwise", source) if is_depthwise(x.layout.shape, quantized.values.shape, attrs) else None
    )


def quantize_depthwise(emit: Emitter, pending: Pending, out: QuantParams) -> Stored:
    """Emit the convolution."""
    source = pending.source
    x = source.operands[0]
    weight = weight_of(source.operands[1], 0)
    assert weight is not None  # depthwise saw to it
    channels, _, height, width = weight.values.shape
    taps = QuantizedWeight(weight.values.transpose(2, 3, 1, 0).reshape(-1, channels), weight.scale)
    bias = None if pending.bias is None else pending.bias.value.numpy().astype(np.float64).ravel()
    numbers = linear_parameters(source.name, x.params, taps, bias, out)
    down, across = source.call.attrs.strides
    size = output_size(x.layout.shape, (height, width), source.call.attrs)
    data = padded_nhwc(emit, x, source.call.attrs)
    low, high = clip_range(out, pending.bounds)
    func = composites.depthwise(
        source.name,
        data_shape=tuple(int(d) for d in data.ty.shape),
        kernel=(height, width),
        strides=(int(down), int(across)),
        size=size[1:],
        in_dtype=x.params.dtype,
        out_dtype=out.dtype,
        low=low,
        high=high,
        zero_point=out.zero_point if numbers.fixed_point else 0,
        fixed_point=numbers.fixed_point,
    )
    args = [data, *map(constant, (taps.values, numbers.bias, *numbers.rescale))]
    return Stored(out, RowsLayout(size, 1, (channels,)), rows_var=emit.composite(func, args, source.name))
