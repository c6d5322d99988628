"""Which kernel computes an integer function on a machine: the one table of schedules.

A new kernel is a new entry in FAMILIES and the file it names; see CONTRIBUTING.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from tvmq.bit_planes import BYTE
from tvmq.formats import PACKED_BITS
from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import Pooling
from tvmq.schedule import (
    attention,
    attention_spec,
    conv_spec,
    depthwise,
    depthwise_spec,
    layer_norm,
    x86_amx_linear,
    x86_linear,
    x86_sorted_linear,
)
from tvmq.schedule.attention_spec import AttentionDecision
from tvmq.schedule.conv import conv_prim_func
from tvmq.schedule.conv_spec import ConvSpec
from tvmq.schedule.conv_tiles import ConvDecision, conv_space
from tvmq.schedule.depthwise import DepthwiseDecision
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.float_linear import unpack_float_weight
from tvmq.schedule.isa import Isa, isa_of
from tvmq.schedule.layer_norm import LayerNormDecision
from tvmq.schedule.linear_spec import LANES, LinearSpec, pack_weight, pad_channels, unpack_weight
from tvmq.schedule.linear_spec import supports as supports_linear
from tvmq.schedule.pool import PoolSpec, pool_prim_func
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.saturation import pack_sorted, unpack_sorted
from tvmq.schedule.space import Decisions, Space
from tvmq.target import TargetProfile

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
EMPTY = Space()
ATTENTION_INPUTS = 4  # q, k, v and the table; biases and a mask follow


@dataclass(frozen=True, slots=True)
class Packing:
    """How a constant is laid out for a kernel; the layout's name finds the way back."""

    layout: str
    pack: Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for one call. Calls with equal keys share it."""

    key: Any  # what it computes, and all else that its code depends on; its repr names it in a database
    name: str
    packing: tuple[Packing | None, ...]  # per argument; None: as it is
    build: Callable[..., tirx.PrimFunc]  # called with the decisions of a point of space
    space: Space = EMPTY
    tuned_as: Any = None  # what of key decides the speed; kernels that share it are tuned once. None: all

    @property
    def semantics(self) -> str:
        """Return what tuning knows this kernel by: the same text in every process."""
        return repr(self.key if self.tuned_as is None else self.tuned_as)

    def function(self, decisions: Decisions | None = None) -> tirx.PrimFunc:
        """Return the PrimFunc, by the default decisions if none are given."""
        return self.build(**(self.space.default if decisions is None else decisions))


def find(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    """Return the kernel for a composite with these attributes and argument shapes, None if there is none."""
    family = FAMILIES.get(str(attrs["kernel"]))
    if family is None or profile.architecture != "x86_64":
        return None
    return family(attrs, shapes, profile, threads)


def unpack(array: Array, layout: str, logical_shape: Shape) -> Array:
    """Return a packed constant as the integer function takes it."""
    if layout == "plain":
        return array
    return UNPACK[layout](array, logical_shape)


def _channels() -> Packing:
    return Packing("channels16", lambda v: pad_channels(v, -(-len(v) // LANES) * LANES))


UNPACK: Mapping[str, Callable[[Array, Shape], Array]] = MappingProxyType(
    {
        "linear16x4": lambda array, shape: unpack_weight(array, *shape[-2:]).reshape(shape),
        "sorted16x4": lambda array, shape: unpack_sorted(array, *shape[-2:]).reshape(shape),
        "conv16x4": conv_spec.unpack_weight,
        **{f"conv16x4w{n}": functools.partial(conv_spec.unpack_weight, bits=n) for n in PACKED_BITS},
        **{f"depthwise{n}": functools.partial(depthwise_spec.unpack_weight, widest=n) for n in (16, 32, 64)},
        **{f"quarters{n}": functools.partial(depthwise_spec.unpack_channels, widest=n) for n in (16, 32, 64)},
        "float16": lambda array, shape: unpack_float_weight(array, *shape),
        "keys16": attention_spec.unpack_bias,
        "channels16": lambda array, shape: np.ascontiguousarray(array[: shape[0]]),
    }
)


def _linear(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    # The weight of a convolution that is a product of every pixel is [1, 1, inputs, outputs].
    (rows, inputs), outputs = shapes[0], shapes[1][-1]
    spec = _product(attrs, rows, inputs, outputs)
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8":
        return None
    bits = _packed_bits(attrs, isa)
    if bits < BYTE:  # a window of one pixel passes over a line of them
        window = {"batch": 1, "rows": 1, "kernel_rows": 1, "kernel_columns": 1}
        geometry = ConvGeometry(**window, columns=rows, channels=inputs, outputs=outputs)
        line = ConvSpec(geometry=geometry, product=spec, weight_bits=bits)
        return _windows(line, f"linear_{rows}x{inputs}x{outputs}", len(shapes), profile, isa, threads)
    if (supports_linear if isa.vnni else x86_sorted_linear.supports)(spec) is not None:
        return None
    layout, pack = ("linear16x4", pack_weight) if isa.vnni else ("sorted16x4", pack_sorted)
    weight = Packing(layout, lambda values: pack(values.reshape(inputs, outputs)))
    packing = _packing(spec, weight, len(shapes))

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


def _conv2d(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    geometry = ConvGeometry.from_attrs(attrs)
    if geometry.depthwise:
        return _depthwise(attrs, shapes, profile, threads)
    product = _product(attrs, geometry.pixels, geometry.group_inputs, geometry.outputs)
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8":
        return None
    bits = _packed_bits(attrs, isa)
    if geometry.pointwise and product.copy is None and bits == BYTE and (isa.amx or not isa.vnni):
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
    bits = spec.weight_bits
    pack = functools.partial(conv_spec.pack_rows if spec.by_rows else conv_spec.pack_taps, bits=bits)
    layout = f"conv16x4w{bits}" if spec.packed else "conv16x4"

    def build(**decisions: Any) -> tirx.PrimFunc:
        return conv_prim_func(spec, ConvDecision(**decisions), isa)

    packing = _packing(spec.product, Packing(layout, lambda values: pack(_kernel(values))), arguments)
    name = f"{name}_w{bits}" if spec.packed else name
    return Kernel((spec, profile.name, threads), name, packing, build, conv_space(spec, isa, threads))


def _kernel(weight: Array) -> Array:
    """Return a weight [inputs, outputs] as that of a window of one pixel; any other as it is."""
    return weight.reshape((1, 1, *weight.shape)[-4:])


def _packed_bits(attrs: Mapping[str, Any], isa: Isa) -> int:
    """Return the bits that each weight takes in the kernel's memory."""
    bits = int(attrs.get("weight_bits", BYTE))
    return bits if bits in PACKED_BITS and not isa.amx else BYTE


def _depthwise(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    geometry = ConvGeometry.from_attrs(attrs)
    product = _product(attrs, geometry.pixels, 1, geometry.outputs)
    spec = DepthwiseSpec(geometry=geometry, product=product, pad_value=int(attrs["pad_value"]))
    isa = isa_of(profile)
    if isa is None or attrs["in_dtype"] != "uint8" or depthwise_spec.supports(spec) is not None:
        return None
    widest = depthwise.widest_chunk(isa)
    weight = Packing(f"depthwise{widest}", lambda v: depthwise_spec.pack_weight(v, widest))
    packing = _packing(product, weight, len(shapes))
    if spec.short:
        ordered = Packing(f"quarters{widest}", lambda v: depthwise_spec.pack_channels(v, widest))
        packing = (None, weight, ordered, ordered, *packing[4:])

    def build(**decisions: Any) -> tirx.PrimFunc:
        return depthwise.depthwise_prim_func(spec, DepthwiseDecision(**decisions), isa)

    name = f"depthwise_{geometry.out_rows}x{geometry.out_columns}x{geometry.channels}"
    space = depthwise.depthwise_space(spec, threads)
    return Kernel((spec, profile.name, threads), name, packing, build, space)


def _pool(
    attrs: Mapping[str, Any], _shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    geometry = ConvGeometry.from_attrs(attrs)
    names = [field.name for field in dataclasses.fields(Pooling) if field.name not in ("low", "high")]
    pooling = Pooling(**_fields(attrs, *names), **_clip(attrs, str(attrs["out_dtype"])))
    spec = PoolSpec(geometry, pooling)
    name = f"{pooling.operation}_pool_{geometry.out_rows}x{geometry.out_columns}x{geometry.channels}"
    return Kernel((spec, profile.name, threads), name, (None,), lambda: pool_prim_func(spec, threads))


def _product(attrs: Mapping[str, Any], rows: int, inputs: int, outputs: int) -> LinearSpec:
    out_dtype = str(attrs["out_dtype"])
    return LinearSpec(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        out_dtype=out_dtype,
        residual=bool(attrs["residual"]),
        table=bool(attrs["table"]),
        fixed_point=bool(attrs["fixed_point"]),
        zero_point=int(attrs["zero_point"]),
        copy=_copy(attrs),
        **_clip(attrs, out_dtype),
    )


def _packing(product: LinearSpec, weight: Packing, arguments: int) -> tuple[Packing | None, ...]:
    """Return how x, weight, bias, rescale... and the rest are packed."""
    rescale = 2 if product.fixed_point else 1
    packing = (None, weight, *[_channels()] * (1 + rescale))
    return packing + (None,) * (arguments - len(packing))


def _clip(attrs: Mapping[str, Any], out_dtype: str) -> dict[str, Any]:
    """Return the clip bounds where they are not the dtype's own."""
    if out_dtype not in INTEGER_RANGE:
        return {}
    low, high = int(attrs["low"]), int(attrs["high"])
    return {} if (low, high) == INTEGER_RANGE[out_dtype] else {"low": low, "high": high}


def _copy(attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return shift and zero point of a second result, and its clip bounds where they are not uint8's own."""
    if "copy_shift" not in attrs:
        return None
    shift, zero_point, *clip = (int(attrs[f"copy_{name}"]) for name in ("shift", "zero_point", "low", "high"))
    return (shift, zero_point) if tuple(clip) == INTEGER_RANGE["uint8"] else (shift, zero_point, *clip)


def _layer_norm(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    pieces, (channels,) = int(attrs["pieces"]), shapes[1]
    rows = shapes[0][0] // (pieces or 1)
    numbers = _fields(attrs, "gain_shift", "epsilon", "limit", "out_dtype", "pieces")
    clip = _clip(attrs, str(attrs["out_dtype"]))
    spec = layer_norm.LayerNormSpec(rows, channels, **numbers, copy=_copy(attrs), **clip)
    if layer_norm.supports(spec) is not None:
        return None
    return Kernel(
        (spec, profile.name),
        f"layer_norm_{rows}x{channels}",
        (None,) * len(shapes),
        lambda **decisions: layer_norm.layer_norm_prim_func(spec, LayerNormDecision(**decisions)),
        layer_norm.layer_norm_space(spec, threads),
        (layer_norm.speed_of(spec), profile.name),
    )


def _attention(
    attrs: Mapping[str, Any], shapes: Sequence[Shape], profile: TargetProfile, threads: int
) -> Kernel | None:
    count = int(attrs["biases"])
    biases = shapes[ATTENTION_INPUTS:][:count]
    mask = shapes[ATTENTION_INPUTS + count :][: int(attrs["mask"])]
    optional = ("biases", "mask", "indexed", "low", "high")
    names = [f.name for f in dataclasses.fields(attention_spec.AttentionSpec) if f.name not in optional]
    spec = attention_spec.AttentionSpec(
        **_fields(attrs, *names),
        biases=tuple((shape[0], shape[1]) for shape in biases),
        mask=(mask[0][0], mask[0][1]) if mask else None,
        indexed=bool(attrs["indexed"]),
        **_clip(attrs, str(attrs["out_dtype"])),
    )
    isa = isa_of(profile)
    if isa is None or attention_spec.supports(spec) is not None:
        return None

    def build(**decisions: Any) -> tirx.PrimFunc:
        return attention.attention_prim_func(spec, AttentionDecision(**decisions), isa)

    packing = [None] * ATTENTION_INPUTS + [Packing("keys16", attention_spec.pack_bias)] * count
    packing += [None] * (len(shapes) - len(packing))
    return Kernel(
        (spec, profile.name, threads),
        f"attention_{spec.heads}x{spec.queries}x{spec.head_dim}",
        tuple(packing),
        build,
        attention_spec.attention_space(spec, threads, attention.TILE_VECTORS[isa.bits]),
        (attention_spec.speed_of(spec), profile.name),
    )


def _fields(attrs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: attrs[name] for name in names}


Family = Callable[[Mapping[str, Any], Sequence[Shape], TargetProfile, int], Kernel | None]
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"linear": _linear, "conv2d": _conv2d, "pool": _pool, "layer_norm": _layer_norm, "attention": _attention}
)
