"""Which CUDA kernel computes an integer function: the GPU's families for tvmq.schedule.kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tvm import tirx

from tvmq.bit_planes import BYTE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule import attention_spec, layer_norm
from tvmq.schedule.cuda import product, rows, windows
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.packing import pack_channels, pack_nibbles, pack_product, pack_taps
from tvmq.schedule.cuda.product import ProductSpec, TileDecision
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.kernel import Array, Kernel, Packing, Shape
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.specs import attention_spec_of, layer_norm_spec_of, pool_spec_of, product_spec_of
from tvmq.target import TargetProfile

Attributes = Mapping[str, Any]
OPERANDS = {"uint8": False, "int8": True}  # what products take -> whether it is signed
CHANNELS = Packing("cuda_channels", pack_channels)


def find(attrs: Attributes, shapes: Sequence[Shape], profile: TargetProfile) -> Kernel | None:
    """Return the kernel for a composite with these attributes and argument shapes, None if there is none."""
    family, gpu = FAMILIES.get(str(attrs["kernel"])), GpuModel.of(profile)
    return None if family is None or gpu is None else family(attrs, shapes, profile, gpu)


def _linear(
    attrs: Attributes, shapes: Sequence[Shape], profile: TargetProfile, gpu: GpuModel
) -> Kernel | None:
    if attrs["in_dtype"] not in OPERANDS:
        return None
    # The weight of a convolution that is a product of every pixel is [1, 1, inputs, outputs].
    (count, inputs), outputs = shapes[0], shapes[1][-1]
    linear = product_spec_of(attrs, count, inputs, outputs)
    bits = _bits_in_memory(attrs, gpu)
    spec = ProductSpec(product=linear, signed=OPERANDS[attrs["in_dtype"]], weight_bits=bits)
    return _product(spec, f"linear_{count}x{inputs}x{outputs}", len(shapes), profile, gpu)


def _conv2d(
    attrs: Attributes, shapes: Sequence[Shape], profile: TargetProfile, gpu: GpuModel
) -> Kernel | None:
    g = ConvGeometry.from_attrs(attrs)
    if attrs["in_dtype"] not in OPERANDS:
        return None
    if g.depthwise:
        return _depthwise(attrs, g, len(shapes), profile)
    if g.pointwise:
        return _linear(attrs, shapes, profile, gpu)
    linear = product_spec_of(attrs, g.pixels, g.group_inputs, g.outputs)
    signed, pad_value = OPERANDS[attrs["in_dtype"]], int(attrs["pad_value"])
    bits = _bits_in_memory(attrs, gpu)
    spec = ProductSpec(product=linear, signed=signed, weight_bits=bits, geometry=g, pad_value=pad_value)
    name = f"conv2d_{g.out_rows}x{g.out_columns}x{g.channels}x{g.outputs}"
    return _product(spec, name, len(shapes), profile, gpu)


def _bits_in_memory(attrs: Attributes, gpu: GpuModel) -> int:
    """Return the bits that each weight takes there; fewer than 4 would make the file larger."""
    bits = int(attrs.get("weight_bits", BYTE))
    return bits if bits in gpu.weight_bits else BYTE


def _product(
    spec: ProductSpec, name: str, arguments: int, profile: TargetProfile, gpu: GpuModel
) -> Kernel | None:
    if product.supports(spec) is not None:
        return None
    layout = "cuda_product" + (("_rows" if spec.by_rows else "_taps") if spec.geometry else "")
    pack: Callable[[Array], Array] = functools.partial(pack_product, groups=spec.groups, run=spec.run)
    weight = Packing(layout, pack)
    if spec.weight_bits < BYTE:
        suffix = f"_w{spec.weight_bits}"
        name, weight = name + suffix, Packing(layout + suffix, lambda values: pack_nibbles(pack(values)))

    def build(**decisions: Any) -> tirx.PrimFunc:
        return product.product_prim_func(spec, TileDecision(**decisions))

    packing = _packing(spec.product, weight, arguments)
    space, speed = product.product_space(spec, gpu), (product.speed_of(spec), profile.name)
    return Kernel((spec, profile.name), name, packing, build, space, speed)


def _depthwise(attrs: Attributes, g: ConvGeometry, arguments: int, profile: TargetProfile) -> Kernel:
    linear = product_spec_of(attrs, g.pixels, 1, g.outputs)
    spec = DepthwiseSpec(geometry=g, product=linear, pad_value=int(attrs["pad_value"]))
    signed = OPERANDS[attrs["in_dtype"]]
    packing = _packing(linear, Packing("cuda_taps", pack_taps), arguments)
    name = f"depthwise_{g.out_rows}x{g.out_columns}x{g.channels}"
    build = functools.partial(windows.depthwise_prim_func, spec, signed)
    return Kernel((spec, signed, profile.name), name, packing, build, windows.THREADS)


def _packing(linear: LinearSpec, weight: Packing, arguments: int) -> tuple[Packing | None, ...]:
    """Return how x, weight, bias, rescale... and the rest are packed."""
    packing = (None, weight, *[CHANNELS] * (3 if linear.rescaled else 2))
    return packing + (None,) * (arguments - len(packing))


def _pool(
    attrs: Attributes, _shapes: Sequence[Shape], profile: TargetProfile, _gpu: GpuModel
) -> Kernel | None:
    spec = pool_spec_of(attrs)
    g = spec.geometry
    name = f"{spec.pooling.operation}_pool_{g.out_rows}x{g.out_columns}x{g.channels}"
    build = functools.partial(windows.pool_prim_func, spec)
    return Kernel((spec, profile.name), name, (None,), build, windows.THREADS)


def _layer_norm(
    attrs: Attributes, shapes: Sequence[Shape], profile: TargetProfile, gpu: GpuModel
) -> Kernel | None:
    spec = layer_norm_spec_of(attrs, shapes)
    if layer_norm.supports(spec) is not None:
        return None
    name = f"layer_norm_{spec.rows}x{spec.channels}"
    build = functools.partial(rows.layer_norm_prim_func, spec)
    packing = (None,) * len(shapes)
    space, speed = rows.layer_norm_space(spec, gpu), (layer_norm.speed_of(spec), profile.name)
    return Kernel((spec, profile.name), name, packing, build, space, speed)


def _attention(
    attrs: Attributes, shapes: Sequence[Shape], profile: TargetProfile, gpu: GpuModel
) -> Kernel | None:
    spec = attention_spec_of(attrs, shapes)
    if rows.supports(spec) is not None or rows.attention_bytes(spec) > gpu.shared_bytes:
        return None
    name = f"attention_{spec.heads}x{spec.queries}x{spec.head_dim}"
    build = functools.partial(rows.attention_prim_func, spec)
    packing = (None,) * len(shapes)
    space, speed = rows.attention_space(spec, gpu), (attention_spec.speed_of(spec), profile.name)
    return Kernel((spec, profile.name), name, packing, build, space, speed)


Family = Callable[[Attributes, Sequence[Shape], TargetProfile, GpuModel], Kernel | None]
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"linear": _linear, "conv2d": _conv2d, "pool": _pool, "layer_norm": _layer_norm, "attention": _attention}
)
