"""Depthwise convolutions and pools: a thread for neighbouring channels of a pixel."""

from __future__ import annotations

from math import ceil

from tvm import tirx

from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import MAX
from tvmq.schedule.cuda.launch import C_TYPES, Call, Launch, device_prim_func, template
from tvmq.schedule.cuda.packing import QUAD, padded
from tvmq.schedule.cuda.product import epilogue, epilogue_buffers, operands, results
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.pool import PoolSpec
from tvmq.schedule.space import Space

THREADS = Space({"threads": (64, 128, 256)}, {"threads": 128})


def depthwise_prim_func(spec: DepthwiseSpec, signed: bool, threads: int) -> tirx.PrimFunc:
    """Return the kernel of a convolution of each channel with its own window."""
    g, product = spec.geometry, spec.product
    kernel = {
        "x": ((g.batch * g.rows * g.columns, g.channels), "int8" if signed else "uint8"),
        "weight": ((g.kernel_rows * g.kernel_columns, padded(g.channels, QUAD)), "int8"),
        **epilogue_buffers(product),
    }
    name = template("depthwise", _planes(g), signed, spec.pad_value, epilogue(product))
    launch = Launch(ceil(g.pixels * ceil(g.channels / QUAD) / threads), threads)
    call = Call(name, ("x", "weight", operands(kernel)))
    return device_prim_func("depthwise", kernel, results(product), launch, call)


def pool_prim_func(spec: PoolSpec, threads: int) -> tirx.PrimFunc:
    """Return the kernel (x, out) of a pooling."""
    g, p = spec.geometry, spec.pooling
    source, result = C_TYPES[p.in_dtype], C_TYPES[p.out_dtype]
    if p.operation == MAX:
        lowest = INTEGER_RANGE[p.in_dtype][0]
        call = Call(template("max_pool", _planes(g), source), ("x", "out", lowest))
    else:
        numbers = (p.zero_point, p.multiplier, p.shift, p.out_zero_point, *p.clip)
        call = Call(template("mean_pool", _planes(g), source, result, *numbers), ("x", "out"))
    kernel = {
        "x": ((g.batch * g.rows * g.columns, g.channels), p.in_dtype),
        "out": ((g.pixels, g.channels), p.out_dtype),
    }
    launch = Launch(ceil(g.pixels * g.channels / threads), threads)
    return device_prim_func(f"{p.operation}_pool", kernel, ("out",), launch, call)


def _planes(g: ConvGeometry) -> str:
    sizes = (g.batch, g.rows, g.columns, g.channels, g.kernel_rows, g.kernel_columns)
    steps = (g.stride_rows, g.stride_columns, g.top, g.left, g.dilation_rows, g.dilation_columns)
    return template("Planes", *sizes, *steps, g.out_rows, g.out_columns)
