"""One kernel of each family: linears and attention of DeiT-S, convolutions of ResNet and MobileNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.attention import TILE_VECTORS, attention_prim_func
from tvmq.schedule.attention_spec import AttentionSpec, default_decision
from tvmq.schedule.conv import conv_prim_func
from tvmq.schedule.conv_spec import ConvSpec
from tvmq.schedule.conv_tiles import choose_conv
from tvmq.schedule.depthwise import choose_depthwise, depthwise_prim_func
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.float_linear import default_float_decision, float_linear_prim_func, schedule_float_linear
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import LinearSpec

FLOAT_LINEAR = (197, 384, 1536)
SAME = dict.fromkeys(("top", "left", "bottom", "right"), 1)


def geometry(pixels: int, channels: int, outputs: int, kernel: int, **fields: int) -> ConvGeometry:
    """Return a convolution of one square image, or with kernel 0 of a line of pixels by a window of one."""
    rows = pixels if kernel else 1
    sizes = {"kernel_rows": kernel or 1, "kernel_columns": kernel or 1, "rows": rows, "columns": pixels}
    return ConvGeometry(batch=1, channels=channels, outputs=outputs, **{**sizes, **fields})


def _product(g: ConvGeometry) -> LinearSpec:
    return LinearSpec(rows=g.pixels, inputs=g.group_inputs, outputs=g.outputs, out_dtype="uint8")


def conv(g: ConvGeometry, bits: int = 8) -> Callable[[Isa], Any]:
    """Return what builds the kernel of a convolution for an instruction set."""
    spec = ConvSpec(geometry=g, product=_product(g), weight_bits=bits)
    return lambda isa: conv_prim_func(spec, choose_conv(spec, isa, 1), isa)


def depthwise(g: ConvGeometry) -> Callable[[Isa], Any]:
    """Return what builds the kernel of a depthwise convolution."""
    spec = DepthwiseSpec(geometry=g, product=_product(g))
    return lambda isa: depthwise_prim_func(spec, choose_depthwise(spec, isa, 1), isa)


def attention(isa: Isa) -> Any:
    """Return the kernel of DeiT-S's attention."""
    constants = {"score_shift": 9, "numerator": 1 << 28, "norm_shift": 24, "zero_point": 128}
    spec = AttentionSpec(batch=1, heads=6, queries=197, keys=197, head_dim=64, out_dtype="uint8", **constants)
    return attention_prim_func(spec, default_decision(spec, 1, TILE_VECTORS[isa.bits]), isa)


def float_linear(_isa: Isa) -> Any:
    """Return the float kernel that a linear in float gets."""
    func = float_linear_prim_func(*FLOAT_LINEAR, bias=True)
    return schedule_float_linear(func, default_float_decision(*FLOAT_LINEAR, 1, avx512=False))


# Name -> what builds it, and the share of the multiplied bytes that are not filling.
FAMILIES: Mapping[str, tuple[Callable[[Isa], Any], float]] = {
    "linear 197 x 384 x 1536": (conv(geometry(197, 384, 1536, 0)), 1),
    "the same, weights of 4 bits": (conv(geometry(197, 384, 1536, 0), 4), 1),
    "convolution 1 x 1, 256 to 64": (conv(geometry(56, 256, 64, 1)), 1),
    "convolution 3 x 3, 64 to 64": (conv(geometry(56, 64, 64, 3, **SAME)), 1),
    "convolution 3 x 3 of 3 channels": (
        conv(geometry(224, 3, 32, 3, stride_rows=2, stride_columns=2, **SAME)),
        9 / 12,
    ),
    "depthwise 3 x 3, epilogue included": (depthwise(geometry(56, 96, 96, 3, groups=96, **SAME)), 3 / 4),
    "attention's products, head of 64": (attention, 1),
}
