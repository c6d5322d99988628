"""Which kernel computes an integer function on a machine: the one table of schedules.

A new kernel is a new entry in FAMILIES and the file it names; see CONTRIBUTING.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
from tvm import tirx

from tvmq.bit_planes import BYTE
from tvmq.formats import PACKED_BITS
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule import (
    attention,
    attention_spec,
    conv_spec,
    depthwise,
    depthwise_spec,
    layer_norm,
    packed_operand,
    x86_amx_linear,
    x86_linear,
    x86_operand_linear,
    x86_sorted_linear,
)
from tvmq.schedule.attention_spec import AttentionDecision
from tvmq.schedule.conv import conv_prim_func
from tvmq.schedule.conv_spec import ConvSpec
from tvmq.schedule.conv_tiles import ConvDecision, conv_space
from tvmq.schedule.cuda import kernels as cuda
from tvmq.schedule.depthwise import DepthwiseDecision
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.isa import Isa, isa_of
from tvmq.schedule.kernel import EMPTY, Kernel, Packing, Shape
from tvmq.schedule.layer_norm import LayerNormDecision
from tvmq.schedule.linear_spec import LinearSpec, pack_weight
from tvmq.schedule.linear_spec import supports as supports_linear
from tvmq.schedule.packed_operand import OPERAND_LINEAR, PACKED_ATTENTION, PackedOperand
from tvmq.schedule.packing import of_arguments, of_depthwise, of_windows
from tvmq.schedule.pool import pool_prim_func
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.saturation import pack_sorted
from tvmq.schedule.specs import (
    ATTENTION_INPUTS,
    attention_spec_of,
    layer_norm_spec_of,
    pool_spec_of,
    product_spec_of,
)
from tvmq.schedule.x86_operand_linear import OperandDecision
from tvmq.target import TargetProfile

Array = npt.NDArray[Any]


def find(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    """Return the kernel for a composite with these attributes and argument shapes, None if there is none."""
    if profile.capability is not None:
        return cuda.find(attrs, shapes, profile)
    family = FAMILIES.get(str(attrs["kernel"]))
    return None if family is None else family(attrs, shapes, profile, threads)


def _linear(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    # The weight of a convolution that is a product of every pixel is [1, 1, inputs, outputs].
    (rows, inputs), outputs = shapes[0], shapes[1][-1]
    spec = product_spec_of(attrs, rows, inputs, outputs)
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8":
        return None
    bits = _packed_bits(attrs, isa)
    if bits < BYTE or isa.neon:  # a window of one pixel passes over a line of them
        window = {"batch": 1, "rows": 1, "kernel_rows": 1, "kernel_columns": 1}
        geometry = ConvGeometry(**window, columns=rows, channels=inputs, outputs=outputs)
        line = ConvSpec(geometry=geometry, product=spec, weight_bits=bits)
        return _windows(line, f"linear_{rows}x{inputs}x{outputs}", len(shapes), profile, isa, threads)
    if (supports_linear if isa.vnni else x86_sorted_linear.supports)(spec) is not None:
        return None
    layout, pack = ("linear16x4", pack_weight) if isa.vnni else ("sorted16x4", pack_sorted)
    weight = Packing(layout, lambda values: pack(values.reshape(inputs, outputs)))
    packing = of_arguments(spec, weight, len(shapes))

    if isa.amx and x86_amx_linear.supports(spec) is None:
        build, space = functools.partial(x86_amx_linear.amx_linear_prim_func, spec, isa, threads), EMPTY
    elif isa.vnni:
        build = functools.partial(_tiled_linear, spec, isa)
        space = x86_linear.linear_space(spec, threads, isa)
    else:
        build = functools.partial(x86_sorted_linear.sorted_linear_prim_func, spec, isa)
        space = x86_sorted_linear.sorted_space(spec, threads, isa)
    return Kernel((spec, profile.name), f"linear_{rows}x{inputs}x{outputs}", packing, build, space)


def _tiled_linear(spec: LinearSpec, isa: Isa, **decisions: Any) -> tirx.PrimFunc:
    decision = Decision(**decisions)
    func = x86_linear.linear_prim_func(spec, isa, ahead=decision.ahead)
    return x86_linear.schedule_linear(func, spec, decision, isa)


def _operand_linear(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    """Return the kernel of what PackKeysAndValues makes of a linear."""
    (rows, inputs), outputs = shapes[0], shapes[1][-1]
    spec, operand = product_spec_of(attrs, rows, inputs, outputs), PackedOperand.from_attrs(attrs)
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8" or _packed_bits(attrs, isa) < BYTE:
        return None
    if isa.amx and x86_amx_linear.supports(spec) is None:
        return None  # tiles multiply faster, by more than attention gains
    if x86_operand_linear.supports(spec, operand, isa) is not None:
        return None

    def build(**decisions: Any) -> tirx.PrimFunc:
        decision = OperandDecision(**decisions)
        return x86_operand_linear.operand_linear_prim_func(spec, operand, isa, decision)

    packing = of_arguments(spec, Packing("linear16x4", pack_weight), len(shapes))
    name = f"linear_{operand.operand}_{rows}x{inputs}x{outputs}"
    space = x86_operand_linear.operand_space(spec, threads)
    return Kernel((spec, operand, profile.name), name, packing, build, space)


def _conv2d(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    geometry = ConvGeometry.from_attrs(attrs)
    if geometry.depthwise:
        return _depthwise(attrs, shapes, profile, threads)
    product = product_spec_of(attrs, geometry.pixels, geometry.group_inputs, geometry.outputs)
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8":
        return None
    bits = _packed_bits(attrs, isa)
    if geometry.pointwise and product.copy is None and bits == BYTE and (isa.amx or not isa.quads):
        linear = _linear(attrs, shapes, profile, threads)
        if linear is not None:  # multiplies faster than dots of pairs
            return linear
    spec = ConvSpec(geometry=geometry, product=product, pad_value=int(attrs["pad_value"]), weight_bits=bits)
    name = f"conv2d_{geometry.out_rows}x{geometry.out_columns}x{geometry.channels}x{geometry.outputs}"
    return _windows(spec, name, len(shapes), profile, isa, threads)


def _windows(
    spec: ConvSpec, name: str, arguments: int, profile: TargetProfile, isa: Isa, threads: int
) -> Kernel | None:
    """Return the kernel that passes a window over its input."""
    if conv_spec.supports(spec) is not None:
        return None

    def build(**decisions: Any) -> tirx.PrimFunc:
        return conv_prim_func(spec, ConvDecision(**decisions), isa)

    packing = of_arguments(spec.product, of_windows(spec, isa), arguments)
    name = f"{name}_w{spec.weight_bits}" if spec.packed else name
    return Kernel((spec, profile.name, threads), name, packing, build, conv_space(spec, isa, threads))


def _packed_bits(attrs: Mapping[str, Any], isa: Isa) -> int:
    """Return the bits that each weight takes in the kernel's memory."""
    bits = int(attrs.get("weight_bits", BYTE))
    return bits if bits in PACKED_BITS and not isa.amx else BYTE


def _depthwise(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    geometry = ConvGeometry.from_attrs(attrs)
    product = product_spec_of(attrs, geometry.pixels, 1, geometry.outputs)
    spec = DepthwiseSpec(geometry=geometry, product=product, pad_value=int(attrs["pad_value"]))
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8" or depthwise_spec.supports(spec) is not None:
        return None
    packing = of_depthwise(spec, isa, depthwise.widest_chunk(isa), len(shapes))

    def build(**decisions: Any) -> tirx.PrimFunc:
        return depthwise.depthwise_prim_func(spec, DepthwiseDecision(**decisions), isa)

    name = f"depthwise_{geometry.out_rows}x{geometry.out_columns}x{geometry.channels}"
    space = depthwise.depthwise_space(spec, isa, threads)
    return Kernel((spec, profile.name, threads), name, packing, build, space)


def _pool(
    attrs: Mapping[str, Any], _shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    spec = pool_spec_of(attrs)
    geometry = spec.geometry
    name = f"{spec.pooling.operation}_pool_{geometry.out_rows}x{geometry.out_columns}x{geometry.channels}"
    return Kernel((spec, profile.name, threads), name, (None,), lambda: pool_prim_func(spec, threads))


def _layer_norm(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    spec, isa = layer_norm_spec_of(attrs, shapes), isa_of(profile)
    if isa is None or layer_norm.supports(spec) is not None:
        return None
    return Kernel(
        (spec, profile.name),
        f"layer_norm_{spec.rows}x{spec.channels}",
        (None,) * len(shapes),
        lambda **decisions: layer_norm.layer_norm_prim_func(spec, LayerNormDecision(**decisions), isa),
        layer_norm.layer_norm_space(spec, threads),
        (layer_norm.speed_of(spec), profile.name),
    )


def _attention(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    spec = attention_spec_of(attrs, shapes)
    isa = isa_of(profile)
    packed = attrs["kernel"] == PACKED_ATTENTION
    if isa is None or attention_spec.supports(spec) is not None:
        return None
    if packed and not (isa.vnni and packed_operand.supports(spec) is None):
        return None

    def build(**decisions: Any) -> tirx.PrimFunc:
        return attention.attention_prim_func(spec, AttentionDecision(**decisions), isa, packed=packed)

    packing = [None] * ATTENTION_INPUTS + [Packing("keys16", attention_spec.pack_bias)] * len(spec.biases)
    packing += [None] * (len(shapes) - len(packing))
    how = (PACKED_ATTENTION,) if packed else ()
    return Kernel(
        (spec, *how, profile.name, threads),
        f"attention_{spec.heads}x{spec.queries}x{spec.head_dim}",
        tuple(packing),
        build,
        attention_spec.attention_space(spec, threads, attention.TILE_VECTORS[isa.bits]),
        (attention_spec.speed_of(spec), *how, profile.name),
    )


Family = Callable[[Mapping[str, Any], Sequence[Shape], TargetProfile, int], Kernel | None]
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "linear": _linear,
        "conv2d": _conv2d,
        "pool": _pool,
        "layer_norm": _layer_norm,
        "attention": _attention,
        OPERAND_LINEAR: _operand_linear,
        PACKED_ATTENTION: _attention,
    }
)
