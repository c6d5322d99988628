"""Build the functions of the integer level: each site is one private Relax function of plain integer ops.

A function carries what it is in its attributes, so that a schedule may replace the call by one kernel;
without one it is inlined and TVM legalises its ops on any target. The ops spell out numerics.py.

    tvmq.kernel   linear | conv2d | layer_norm | attention | table
    tvmq.site     the site's id
    tvmq.*        the static numbers of the kernel, listed with each builder
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op

from tvmq import numerics
from tvmq.passes.composite_body import KERNEL, Body, integer, tensor_type
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.epilogue import Copy, Epilogue, copy_attrs, requantized


def linear(
    site: str,
    epilogue: Epilogue,
    *,
    rows: int,
    inputs: int,
    outputs: int,
    in_dtype: str,
    weight_bits: int = 8,
) -> relax.Function:
    """Return f(x, weight, bias, rescale...[, residual][, table]) of a product with all that follows it.

    x [rows, inputs], weight int8 [inputs, outputs], bias int32 [outputs]. Of each weight only the highest
    weight_bits are used, the others are zero: a kernel may want them packed.
    rescale: one float32 factor [outputs] where out_dtype is float32. Otherwise int32 shifts [outputs], and
    bias holds the rounding half and the output's zero point already; gain: int8 gains, which the products'
    sum is multiplied by before the bias is added, and int8 shifts; fixed_point: int32 multipliers, shifts.
    residual: int16 [rows, outputs], in units of the result. The sum is clipped to [low, high]; a table
    (uint8 [256]) then maps uint8 to uint8. With copy the result is a tuple: int16, and uint8 made of it.
    """
    x = relax.Var("x", tensor_type((rows, inputs), in_dtype))
    weight = relax.Var("weight", tensor_type((inputs, outputs), "int8"))
    bias = relax.Var("bias", tensor_type((outputs,), "int32"))
    params = [x, weight, bias]
    body = Body()
    y = epilogue.emit(body, params, body(op.matmul(x, weight, out_dtype="int32")))
    attrs = {"in_dtype": in_dtype, "weight_bits": weight_bits, **epilogue.attrs()}
    return body.finish(params, y, "linear", site, attrs)


def conv2d(
    site: str,
    epilogue: Epilogue,
    geometry: ConvGeometry,
    *,
    in_dtype: str,
    pad_value: int,
    weight_bits: int = 8,
) -> relax.Function:
    """Return f(x, weight, bias, rescale...[, residual][, table]) of a convolution with all that follows it.

    x, weight int8 and the result are laid out as ConvGeometry says; pad_value is the stored zero. The rest is
    as in linear.
    """
    g = geometry
    x = relax.Var("x", tensor_type((g.batch * g.rows * g.columns, g.channels), in_dtype))
    kernel = (g.kernel_rows, g.kernel_columns, g.group_inputs, g.outputs)
    weight = relax.Var("weight", tensor_type(kernel, "int8"))
    bias = relax.Var("bias", tensor_type((g.outputs,), "int32"))
    params = [x, weight, bias]
    body = Body()
    data = body(op.reshape(x, (g.batch, g.rows, g.columns, g.channels)))
    if g.padded:
        pads = [0, 0, g.top, g.bottom, g.left, g.right, 0, 0]
        data = body(op.nn.pad(data, pads, "constant", pad_value))
    sums = op.nn.conv2d(
        data,
        weight,
        strides=(g.stride_rows, g.stride_columns),
        dilation=(g.dilation_rows, g.dilation_columns),
        groups=g.groups,
        data_layout="NHWC",
        kernel_layout="HWIO",
        out_dtype="int32",
    )
    y = epilogue.emit(body, params, body(op.reshape(body(sums), (g.pixels, g.outputs))))
    attrs = {"in_dtype": in_dtype, "weight_bits": weight_bits, "pad_value": pad_value}
    attrs |= {**g.attrs(), **epilogue.attrs()}
    return body.finish(params, y, "conv2d", site, attrs)


def layer_norm(
    site: str,
    *,
    rows: int,
    channels: int,
    out_dtype: str,
    low: int,
    high: int,
    gain_shift: int,
    epsilon: int,
    limit: int,
    pieces: int = 0,
    copy: Copy | None = None,
) -> relax.Function:
    """Return f(x int16 [rows, channels], gain, offset int32 [channels]): numerics.layer_norm.

    pieces: x is [rows * pieces, channels / pieces], and a last parameter index, int32 [rows * pieces], says
    which of its rows lie side by side in each row of the norm. With copy, which out_dtype int16 may have, the
    result is a tuple: int16, and uint8 made of it.
    """
    x = relax.Var("x", tensor_type((rows * (pieces or 1), channels // (pieces or 1)), "int16"))
    gain = relax.Var("gain", tensor_type((channels,), "int32"))
    offset = relax.Var("offset", tensor_type((channels,), "int32"))
    params, joined = [x, gain, offset], x
    body = Body()
    if pieces:
        params.append(relax.Var("index", tensor_type((rows * pieces,), "int32")))
        taken = body(op.take(x, params[-1], axis=0, mode="clip"))
        joined = body(op.reshape(taken, (rows, channels)))
    clipped = _normalised(body, joined, epsilon, limit)
    y = body(op.add(body(op.multiply(clipped, gain)), offset))
    wide = body(op.clip(body(op.right_shift(y, integer(gain_shift))), low, high))
    y = body(op.astype(wide, out_dtype))
    if copy is not None:
        y = body(relax.Tuple([y, requantized(body, wide, copy)]))
    attrs = {"out_dtype": out_dtype, "low": low, "high": high, "gain_shift": gain_shift, "epsilon": epsilon}
    attrs |= {"limit": limit, "pieces": pieces, **copy_attrs(copy)}
    return body.finish(params, y, "layer_norm", site, attrs)


def table(site: str, *, shape: Sequence[int]) -> relax.Function:
    """Return f(x uint8 shape, table uint8 [256]): the value of a unary function for every uint8."""
    x = relax.Var("x", tensor_type(shape, "uint8"))
    values = relax.Var("table", tensor_type((256,), "uint8"))
    body = Body()
    return body.finish([x, values], body.lookup(x, values, shape), "table", site, {})


def _normalised(body: Body, x: relax.Var, epsilon: int, limit: int) -> relax.Var:
    """Emit (x - mean) / std of each row in units of 2**-NORMALISED_FRACTION_BITS, int32."""
    channels = int(x.ty.shape[-1])
    wide = body(op.left_shift(body(op.astype(x, "int64")), integer(numerics.CENTRED_FRACTION_BITS, "int64")))
    total = body(op.sum(wide, axis=-1, keepdims=True))
    twice = body(op.add(body(op.multiply(total, integer(2, "int64"))), integer(channels, "int64")))
    mean = body(op.floor_divide(twice, integer(2 * channels, "int64")))
    centred = body(op.subtract(wide, mean))
    energy = body(op.sum(body(op.multiply(centred, centred)), axis=-1, keepdims=True))
    scaled = body(op.left_shift(energy, integer(2 * numerics.STD_EXTRA_BITS, "int64")))
    variance = body(
        op.add(body(op.floor_divide(scaled, integer(channels, "int64"))), integer(epsilon, "int64"))
    )
    std = _integer_sqrt(body, variance)
    reciprocal = body(op.floor_divide(integer(1 << numerics.RECIPROCAL_BITS, "int64"), std))
    half = integer(1 << (numerics.NORMALISED_SHIFT - 1), "int64")
    product = body(op.add(body(op.multiply(centred, reciprocal)), half))
    normalised = body(op.right_shift(product, integer(numerics.NORMALISED_SHIFT, "int64")))
    return body(op.astype(body(op.clip(normalised, -limit, limit)), "int32"))


def _integer_sqrt(body: Body, v: relax.Var) -> relax.Var:
    """Emit numerics.integer_sqrt of v, int64 [rows, 1]."""
    powers = relax.const([list(numerics.SQRT_POWERS)], "int64")
    reached = body(op.astype(body(op.greater_equal(v, powers)), "int64"))
    count = body(op.sum(reached, axis=-1, keepdims=True))
    root = body(op.left_shift(integer(1, "int64"), count))
    for _ in range(numerics.NEWTON_STEPS):
        step = body(op.add(root, body(op.floor_divide(v, root))))
        root = body(op.maximum(body(op.right_shift(step, integer(1, "int64"))), integer(1, "int64")))
    return root


def attributes(func: tvm.ir.BaseFunc) -> dict[str, Any]:
    """Return the `tvmq.*` attributes without their prefix; {} for any other function."""
    if not isinstance(func, relax.Function) or func.attrs is None or KERNEL not in func.attrs:
        return {}
    return {
        str(key).removeprefix("tvmq."): _plain(value)
        for key, value in func.attrs.items()
        if str(key).startswith("tvmq.")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (int, str)):
        return value
    return int(value) if hasattr(value, "__int__") else str(value)
