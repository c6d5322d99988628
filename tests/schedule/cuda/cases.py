"""Random products for GPU kernels, with what numerics makes of them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tests.schedule.random_epilogue import finished, rescaled
from tvmq import numerics
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.cuda.packing import pack_channels, pack_nibbles, pack_product, pack_taps
from tvmq.schedule.cuda.product import ProductSpec
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.linear_spec import LinearSpec

EPILOGUES: dict[str, dict[str, Any]] = {
    "uint8": {"out_dtype": "uint8"},
    "table": {"out_dtype": "uint8", "table": True, "high": 200},
    "int8": {"out_dtype": "int8", "low": -127},
    "trunk": {"out_dtype": "int16", "residual": True},
    "copy": {"out_dtype": "int16", "residual": True, "low": -9000, "copy": (3, 5, 2, 15)},
    "fixed point": {"out_dtype": "uint8", "fixed_point": True, "zero_point": 128},
    "gain": {"out_dtype": "uint8", "gain": True},
    "gain in the trunk": {"out_dtype": "int16", "gain": True, "residual": True},
    "float32": {"out_dtype": "float32"},
}
Arrays = list[Any]


def linear_spec(rows: int, inputs: int, outputs: int, epilogue: str, **fields: Any) -> ProductSpec:
    product = LinearSpec(rows=rows, inputs=inputs, outputs=outputs, **EPILOGUES[epilogue])
    return ProductSpec(product=product, **fields)


def conv_spec(geometry: ConvGeometry, epilogue: str, **fields: Any) -> ProductSpec | DepthwiseSpec:
    inputs = 1 if geometry.depthwise else geometry.group_inputs
    product = LinearSpec(rows=geometry.pixels, inputs=inputs, outputs=geometry.outputs, **EPILOGUES[epilogue])
    if geometry.depthwise:
        return DepthwiseSpec(geometry=geometry, product=product, pad_value=7)
    return ProductSpec(product=product, geometry=geometry, pad_value=7, **fields)


def random_case(spec: ProductSpec | DepthwiseSpec) -> tuple[Arrays, Arrays]:
    """Return the kernel's arguments without its results, and these; a quarter of x and weights is extreme.

    The biases of some channels take the sums to the ends of int32.
    """
    random = np.random.default_rng(zlib.crc32(repr(spec).encode()))
    product, g = spec.product, spec.geometry
    signed = isinstance(spec, ProductSpec) and spec.signed
    low, high = (-128, 127) if signed else (0, 255)
    rows = g.batch * g.rows * g.columns if g else product.rows
    x = random.integers(low, high + 1, (rows, g.channels if g else product.inputs))
    x[: rows // 4] = high
    window = (g.kernel_rows, g.kernel_columns, g.group_inputs) if g else (product.inputs,)
    weight = random.integers(-128, 128, (*window, product.outputs))
    weight[..., ::5], weight[..., 1::5] = 127, -128
    if isinstance(spec, ProductSpec):
        weight &= -1 << 8 - spec.weight_bits
    sums = x @ weight if g is None else _convolved(x, weight, g, spec.pad_value).reshape(-1, product.outputs)
    terms = int(np.prod(window))
    bias = random.integers(-5000, 5000, product.outputs)
    bias[::10], bias[1::10] = 2**31 - 1 - high * 127 * terms, high * 128 * terms - 2**31
    rescale, y = rescaled(product, sums, bias, random)
    rest, expected = finished(product, y, random)
    packed = pack_taps(weight.astype("int8")) if isinstance(spec, DepthwiseSpec) else _packed(weight, spec)
    channels = [pack_channels(bias.astype("int32")), *(pack_channels(values) for values in rescale)]
    return [x.astype("int8" if signed else "uint8"), packed, *channels, *rest], expected


def _packed(weight: Any, spec: ProductSpec) -> Any:
    packed = pack_product(weight.astype("int8"), spec.groups, spec.run)
    return packed if spec.weight_bits == 8 else pack_nibbles(packed)


def _convolved(x: Any, weight: Any, g: ConvGeometry, pad_value: int) -> Any:
    return numerics.convolution(
        x.reshape(g.batch, g.rows, g.columns, g.channels),
        weight,
        strides=(g.stride_rows, g.stride_columns),
        padding=(g.top, g.left, g.bottom, g.right),
        dilation=(g.dilation_rows, g.dilation_columns),
        groups=g.groups,
        pad_value=pad_value,
    )
