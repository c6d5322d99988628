"""Replace a float convolution with constant weights by a call of its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx
from tvm.relax import op

from tvmq.passes.constants import array_of
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.rebuild import Expr, Rebuild, dtype_of, op_name, shape_of
from tvmq.passes.sink_permutes import TO_NCHW
from tvmq.schedule.conv_tiles import ConvDecision
from tvmq.schedule.float_conv import float_conv_prim_func
from tvmq.schedule.float_conv_spec import FLOAT, FloatConvSpec, pack_float_bias, pack_float_conv
from tvmq.schedule.float_conv_tiles import float_conv_space
from tvmq.schedule.isa import isa_of
from tvmq.schedule.kernel import Kernel, Packing
from tvmq.target import TargetProfile

TO_NHWC = (0, 2, 3, 1)
LAYOUTS = {("NCHW", "OIHW", "NCHW"), ("NCHW", "OIHW", "")}  # of data, weights, result
Limits = tuple[float | None, float | None]
NO_LIMITS: Limits = (None, None)


def limits_of(call: Expr) -> Limits | None:
    """Return the limits of a ReLU or a clip, None for any other operation."""
    if op_name(call) == "nn.relu":
        return 0.0, None
    if op_name(call) != "clip":
        return None
    low, high = (float(bound.value) for bound in call.args[1:])
    return (None if low == -math.inf else low), (None if high == math.inf else high)


def float_conv_spec(call: Expr, bias: Expr | None, limits: Limits) -> FloatConvSpec | None:
    """Return what a kernel computes in place of a call, its bias and its limits; None where there is none."""
    if op_name(call) != "nn.conv2d" or dtype_of(call) != FLOAT or dtype_of(call.args[0]) != FLOAT:
        return None
    x, weight = call.args
    data, sizes = shape_of(x), shape_of(weight)
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    if array_of(weight) is None or data is None or sizes is None or layouts not in LAYOUTS:
        return None
    if bias is not None:
        shape = shape_of(bias)
        channels = (sizes[0], 1, 1)
        if array_of(bias) is None or dtype_of(bias) != FLOAT or shape not in (channels, (1, *channels)):
            return None
    low, high = limits
    geometry = ConvGeometry.of(data, sizes, attrs)
    return FloatConvSpec(geometry=geometry, bias=bias is not None, low=low, high=high)


def float_conv_kernel(spec: FloatConvSpec, profile: TargetProfile, threads: int) -> Kernel | None:
    """Return the kernel, None for a machine without vectors that it knows."""
    isa = isa_of(profile)
    if isa is None:
        return None

    def build(**decisions: Any) -> tirx.PrimFunc:
        return float_conv_prim_func(spec, ConvDecision(**decisions), isa)

    g = spec.geometry
    kind = "depthwise" if g.depthwise else "conv2d"
    name = f"float_{kind}_{g.out_rows}x{g.out_columns}x{g.channels}x{g.outputs}"
    weight = Packing(f"floats16:{g.groups}", lambda values: pack_float_conv(values, spec))
    packing = (None, weight, *[Packing("offsets16", pack_float_bias)] * spec.bias)
    return Kernel((spec, profile.name, threads), name, packing, build, float_conv_space(spec, isa, threads))


def emit_float_conv(
    graph: Rebuild, name: str, x: Expr, spec: FloatConvSpec, call: Callable[[Expr, Expr], Expr]
) -> Expr:
    """Emit a kernel's call on the rows of NCHW x, which `call` makes of them and the result's type."""
    g = spec.geometry
    pixels = graph.emit(op.permute_dims(x, TO_NHWC))
    rows = graph.emit(op.reshape(pixels, (g.batch * g.rows * g.columns, g.channels)))
    result = graph.emit(call(rows, relax.TensorType((g.pixels, g.outputs), FLOAT)), name)
    return op.permute_dims(
        graph.emit(op.reshape(result, (g.batch, g.out_rows, g.out_columns, g.outputs))), TO_NCHW
    )
