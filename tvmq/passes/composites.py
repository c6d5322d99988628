"""Build the functions of the integer level: each site is one private Relax function of plain integer ops.

A function carries what it is in its attributes, so that a schedule may replace the call by one kernel;
without one it is inlined and TVM legalises its ops on any target. The ops spell out numerics.py.

    tvmq.kernel   linear | depthwise | layer_norm | attention | table
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


def linear(
    site: str,
    *,
    rows: int,
    inputs: int,
    outputs: int,
    in_dtype: str,
    out_dtype: str,
    low: int = 0,
    high: int = 0,
    zero_point: int = 0,
    fixed_point: bool = False,
    residual: bool = False,
    table: bool = False,
) -> relax.Function:
    """Return f(x, weight, bias, rescale...[, residual][, table]) of a product with all that follows it.

    x [rows, inputs], weight int8 [inputs, outputs], bias int32 [outputs].
    rescale: one float32 factor [outputs] where out_dtype is float32. Otherwise int32 shifts [outputs], and
    bias holds the rounding half and the output's zero point already; fixed_point: int32 multipliers, shifts.
    residual: int16 [rows, outputs], in units of the result. The sum is clipped to [low, high]; a table
    (uint8 [256]) then maps uint8 to uint8.
    """
    x = relax.Var("x", tensor_type((rows, inputs), in_dtype))
    weight = relax.Var("weight", tensor_type((inputs, outputs), "int8"))
    bias = relax.Var("bias", tensor_type((outputs,), "int32"))
    params = [x, weight, bias]
    body = Body()
    acc = body(op.add(body(op.matmul(x, weight, out_dtype="int32")), bias))
    if out_dtype == "float32":
        params.append(relax.Var("factor", tensor_type((outputs,), "float32")))
        y = body(op.multiply(body(op.astype(acc, "float32")), params[-1]))
    else:
        y = _rescaled(body, params, acc, zero_point if fixed_point else None)
        if residual:
            params.append(relax.Var("residual", tensor_type((rows, outputs), "int16")))
            y = body(op.add(y, body(op.astype(params[-1], "int32"))))
        y = body(op.astype(body(op.clip(y, low, high)), out_dtype))
    if table:
        params.append(relax.Var("table", tensor_type((256,), "uint8")))
        y = body.lookup(y, params[-1], (rows, outputs))
    attrs = {
        "out_dtype": out_dtype,
        "low": low,
        "high": high,
        "zero_point": zero_point,
        "fixed_point": int(fixed_point),
        "residual": int(residual),
        "table": int(table),
    }
    return body.finish(params, y, "linear", site, attrs)


def depthwise(
    site: str,
    *,
    data_shape: Sequence[int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    size: tuple[int, int],
    in_dtype: str,
    out_dtype: str,
    low: int,
    high: int,
    zero_point: int = 0,
    fixed_point: bool = False,
) -> relax.Function:
    """Return f(x, weight, bias, rescale...) of a convolution of each channel with its own weights.

    x data_shape [B, H, W, C], padded; weight int8 [kernel height * width, C]; the result, of size (rows,
    columns), is [B * rows * columns, C]. bias and rescale are as in linear.
    """
    x = relax.Var("x", tensor_type(data_shape, in_dtype))
    batch, channels = data_shape[0], data_shape[3]
    weight = relax.Var("weight", tensor_type((kernel[0] * kernel[1], channels), "int8"))
    bias = relax.Var("bias", tensor_type((channels,), "int32"))
    params = [x, weight, bias]
    body = Body()
    acc = bias
    for tap in range(kernel[0] * kernel[1]):
        begin = divmod(tap, kernel[1])
        end = [b + (n - 1) * s + 1 for b, n, s in zip(begin, size, strides, strict=True)]
        seen = body(op.strided_slice(x, axes=[1, 2], begin=list(begin), end=end, strides=list(strides)))
        factor = body(op.strided_slice(weight, axes=[0], begin=[tap], end=[tap + 1]))
        product = op.multiply(body(op.astype(seen, "int32")), body(op.astype(factor, "int32")))
        acc = body(op.add(acc, body(product)))
    acc = body(op.reshape(acc, (batch * size[0] * size[1], channels)))
    y = _rescaled(body, params, acc, zero_point if fixed_point else None)
    y = body(op.astype(body(op.clip(y, low, high)), out_dtype))
    attrs = {
        "kernel_rows": kernel[0],
        "kernel_columns": kernel[1],
        "stride_rows": strides[0],
        "stride_columns": strides[1],
        "in_dtype": in_dtype,
        "out_dtype": out_dtype,
        "low": low,
        "high": high,
        "zero_point": zero_point,
        "fixed_point": int(fixed_point),
    }
    return body.finish(params, y, "depthwise", site, attrs)


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
) -> relax.Function:
    """Return f(x int16 [rows, channels], gain, offset int32 [channels]): numerics.layer_norm.

    pieces: x is [rows * pieces, channels / pieces], and a last parameter index, int32 [rows * pieces], says
    which of its rows lie side by side in each row of the norm.
    """
    x = relax.Var("x", tensor_type((rows * (pieces or 1), channels // (pieces or 1)), "int16"))
    gain = relax.Var("gain", tensor_type((channels,), "int32"))
    offset = relax.Var("offset", tensor_type((channels,), "int32"))
    params, joined = [x, gain, offset], x
    body = Body()
    if pieces:
        params.append(relax.Var("index", tensor_type((rows * pieces,), "int32")))
        taken = body(op.take(x, params[-1], axis=0, mode="fast"))
        joined = body(op.reshape(taken, (rows, channels)))
    clipped = _normalised(body, joined, epsilon, limit)
    y = body(op.add(body(op.multiply(clipped, gain)), offset))
    y = body(op.clip(body(op.right_shift(y, integer(gain_shift))), low, high))
    y = body(op.astype(y, out_dtype))
    attrs = {
        "out_dtype": out_dtype,
        "low": low,
        "high": high,
        "gain_shift": gain_shift,
        "epsilon": epsilon,
        "limit": limit,
        "pieces": pieces,
    }
    return body.finish(params, y, "layer_norm", site, attrs)


def table(site: str, *, shape: Sequence[int]) -> relax.Function:
    """Return f(x uint8 shape, table uint8 [256]): the value of a unary function for every uint8."""
    x = relax.Var("x", tensor_type(shape, "uint8"))
    values = relax.Var("table", tensor_type((256,), "uint8"))
    body = Body()
    return body.finish([x, values], body.lookup(x, values, shape), "table", site, {})


def _rescaled(body: Body, params: list[relax.Var], acc: relax.Var, zero_point: int | None) -> relax.Var:
    """Emit the requantized accumulator as int32 and add its parameters; a zero point means fixed point."""
    vector = (int(acc.ty.shape[1]),)
    if zero_point is None:
        params.append(relax.Var("shift", tensor_type(vector, "int32")))
        return body(op.right_shift(acc, params[-1]))
    params += [relax.Var(name, tensor_type(vector, "int32")) for name in ("multiplier", "shift")]
    return _fixed_point(body, acc, params[-2], params[-1], zero_point)


def _fixed_point(
    body: Body, acc: relax.Var, multiplier: relax.Var, shift: relax.Var, zero_point: int
) -> relax.Var:
    """Emit (acc * multiplier + 2**(shift-1)) >> shift in int64, plus the zero point, as int32."""
    wide_shift = body(op.astype(shift, "int64"))
    product = body(op.multiply(body(op.astype(acc, "int64")), body(op.astype(multiplier, "int64"))))
    half = body(op.left_shift(integer(1, "int64"), body(op.subtract(wide_shift, integer(1, "int64")))))
    shifted = body(op.right_shift(body(op.add(product, half)), wide_shift))
    return body(op.add(body(op.astype(shifted, "int32")), integer(zero_point)))


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
