"""Random integer convolutions, what numerics makes of them, and their compiled kernels."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import tvm

from tests.schedule.isa_cases import ISA, built
from tests.schedule.random_epilogue import finished, rescaled
from tvmq import numerics
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule import depthwise_spec
from tvmq.schedule.conv import conv_prim_func
from tvmq.schedule.conv_spec import ConvSpec
from tvmq.schedule.conv_tiles import ConvDecision, choose_conv
from tvmq.schedule.depthwise import (
    DepthwiseDecision,
    choose_depthwise,
    depthwise_prim_func,
    widest_chunk,
)
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import LANES, LinearSpec, pad_channels
from tvmq.schedule.packing import of_windows

EPILOGUES: dict[str, dict[str, Any]] = {
    "uint8": {"out_dtype": "uint8", "high": 200},
    "table": {"out_dtype": "uint8", "table": True},
    "int8": {"out_dtype": "int8", "low": -100},
    "trunk": {"out_dtype": "int16", "residual": True, "copy": (3, 5)},
    "few bits": {"out_dtype": "uint8", "low": 0, "high": 15, "table": True},
    "trunk and few bits": {"out_dtype": "int16", "low": -9000, "copy": (3, 5, 2, 15)},
    "fixed point": {"out_dtype": "uint8", "fixed_point": True, "zero_point": 9},
    "gain": {"out_dtype": "uint8", "gain": True},
    "float32": {"out_dtype": "float32"},
}
Spec = ConvSpec | DepthwiseSpec


def geometry_of(channels: int, outputs: int, kernel: int, **fields: int) -> ConvGeometry:
    """Return a convolution of two images of 9 x 7 unless fields say otherwise."""
    plain = {"batch": 2, "rows": 9, "columns": 7, "channels": channels, "outputs": outputs}
    return ConvGeometry(**{**plain, "kernel_rows": kernel, "kernel_columns": kernel, **fields})


def spec_of(geometry: ConvGeometry, epilogue: str, weight_bits: int = 8) -> Spec:
    """Return the specification of the kernel that computes geometry, weight_bits if it is not depthwise."""
    product = LinearSpec(
        rows=geometry.pixels, inputs=geometry.group_inputs, outputs=geometry.outputs, **EPILOGUES[epilogue]
    )
    if geometry.depthwise:
        return DepthwiseSpec(geometry=geometry, product=product, pad_value=7)
    return ConvSpec(geometry=geometry, product=product, pad_value=7, weight_bits=weight_bits)


def compiled(spec: Spec, name: str, decision: Any = None, threads: int = 1) -> Any:
    """Return the kernel for an instruction set."""
    isa = ISA[name]
    if isinstance(spec, DepthwiseSpec):
        chosen: DepthwiseDecision = decision or choose_depthwise(spec, isa, threads)
        func = depthwise_prim_func(spec, chosen, isa)
    else:
        tiles: ConvDecision = decision or choose_conv(spec, isa, threads)
        func = conv_prim_func(spec, tiles, isa)
    return built(func, name)


def check(kernel: Any, spec: Spec, isa: str) -> None:
    """Run the kernel on random arguments; every byte of its outputs must be that of numerics."""
    arguments, expected = random_case(spec, isa)
    out = [tvm.runtime.tensor(np.full(values.shape, 77, values.dtype)) for values in expected]
    kernel(*map(tvm.runtime.tensor, arguments), *out)
    for found, values in zip(out, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), values)


def random_case(spec: Spec, isa: str) -> tuple[list[Any], list[Any]]:
    """Return the kernel's arguments without its outputs, and these.

    Of every ten channels, two have the largest weights and two the smallest, of which one each has a bias
    that takes the sum to the end of int32 where x is 255, as a quarter of it is.
    """
    g, product = spec.geometry, spec.product
    random = np.random.default_rng(zlib.crc32(repr(spec).encode()))
    x = random.integers(0, 256, (g.batch * g.rows * g.columns, g.channels), "uint8")
    x[: len(x) // 4] = 255
    weight = random.integers(-128, 128, (g.kernel_rows, g.kernel_columns, g.group_inputs, g.outputs))
    weight[..., ::5], weight[..., 1::5] = 127, -128
    if isinstance(spec, ConvSpec):
        weight &= -1 << 8 - spec.weight_bits
    if isa == "neon":  # two of -128 side by side have no kernel there
        x[len(x) // 4 : len(x) // 2] = 0  # that they would meet -128 again
        step = 1 << 8 - spec.weight_bits if isinstance(spec, ConvSpec) else 1
        weight[:, :, 1::2] = np.maximum(weight[:, :, 1::2], -128 + step)
        if g.group_inputs % 2:
            weight = np.maximum(weight, -128 + step)
    sums = numerics.convolution(
        x.reshape(g.batch, g.rows, g.columns, g.channels),
        weight,
        strides=(g.stride_rows, g.stride_columns),
        padding=(g.top, g.left, g.bottom, g.right),
        dilation=(g.dilation_rows, g.dilation_columns),
        groups=g.groups,
        pad_value=spec.pad_value,
    )
    bias = random.integers(-5000, 5000, g.outputs, "int32")
    taps = g.kernel_rows * g.kernel_columns * g.group_inputs
    bias[::10], bias[1::10] = 2**31 - 1 - 255 * 127 * taps, 255 * 128 * taps - 2**31
    rescale, y = rescaled(product, sums.reshape(g.pixels, -1), bias, random)
    rest, expected = finished(product, y, random)
    packed, per_channel = _packed(spec, weight.astype("int8"), [bias, *rescale], ISA[isa])
    return [x, packed, *per_channel, *rest], expected


def _packed(spec: Spec, weight: Any, per_channel: list[Any], isa: Isa) -> tuple[Any, list[Any]]:
    padded = [pad_channels(values, spec.product.groups * LANES) for values in per_channel]
    if isinstance(spec, ConvSpec):
        return of_windows(spec, isa).pack(weight), padded
    widest = widest_chunk(isa)
    packed = depthwise_spec.pack_weight(weight, widest, signed=isa.neon)
    if not spec.short:
        return packed, padded
    return packed, [depthwise_spec.pack_channels(values, widest) for values in per_channel]
