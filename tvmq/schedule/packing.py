"""How constants are laid out for kernels, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq import bit_planes
from tvmq.formats import PACKED_BITS
from tvmq.schedule import attention_spec, conv_spec, depthwise_spec
from tvmq.schedule.arm_intrinsics import pairs_stay_in_words
from tvmq.schedule.conv_spec import ConvSpec
from tvmq.schedule.cuda import packing as cuda_packing
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.float_conv_spec import unpack_float_bias, unpack_float_conv
from tvmq.schedule.float_linear import unpack_float_weight
from tvmq.schedule.isa import Isa
from tvmq.schedule.kernel import Packing
from tvmq.schedule.linear_spec import LANES, LinearSpec, pad_channels, unpack_weight
from tvmq.schedule.saturation import unpack_sorted

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Packings = tuple[Packing | None, ...]  # per argument; None: as it is


UNPACK: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "linear16x4": lambda array, shape: unpack_weight(array, *shape[-2:]).reshape(shape),
        "sorted16x4": lambda array, shape: unpack_sorted(array, *shape[-2:]).reshape(shape),
        "conv16x4": conv_spec.unpack_weight,
        "conv16x4s": functools.partial(conv_spec.unpack_weight, signed=True),
        "conv16x8": functools.partial(conv_spec.unpack_weight, paired=True),
        **{
            f"conv16x4w{n}{sign}": functools.partial(conv_spec.unpack_weight, bits=n, signed=bool(sign))
            for n in PACKED_BITS
            for sign in ("", "s")
        },
        **{f"depthwise{n}": functools.partial(depthwise_spec.unpack_weight, widest=n) for n in (16, 32, 64)},
        "depthwise16s": functools.partial(depthwise_spec.unpack_weight, widest=16),
        **{f"quarters{n}": functools.partial(depthwise_spec.unpack_channels, widest=n) for n in (16, 32, 64)},
        "floats16": unpack_float_conv,
        "offsets16": unpack_float_bias,
        "float16": lambda array, shape: unpack_float_weight(array, *shape),
        "keys16": attention_spec.unpack_bias,
        **cuda_packing.UNPACK,
        "channels16": lambda array, shape: np.ascontiguousarray(array[: shape[0]]),
    }
)


def unpack(array: Array, layout: str, logical_shape: Shape) -> Array:
    """Return a packed constant as the function takes it that is computed; "name:8" gives UNPACK's an 8."""
    if layout == "plain":
        return array
    name, *numbers = layout.split(":")
    return UNPACK[name](array, logical_shape, *map(int, numbers))


def of_arguments(product: LinearSpec, weight: Packing, arguments: int) -> Packings:
    """Return how x, weight, bias, rescale... and the rest are packed."""
    channels = Packing("channels16", lambda v: pad_channels(v, -(-len(v) // LANES) * LANES))
    packing = (None, weight, *[channels] * (3 if product.rescaled else 2))
    return packing + (None,) * (arguments - len(packing))


def of_windows(spec: ConvSpec, isa: Isa) -> Packing:
    """Return how the weights of a convolution, or of a linear as one, are packed for an instruction set."""
    pack = conv_spec.pack_rows if spec.geometry.by_rows else conv_spec.pack_taps
    paired = conv_spec.in_pairs(spec, isa)

    def packed(values: Array) -> Array:
        window = values.reshape((1, 1, *values.shape)[-4:])
        return pack(window, spec.weight_bits, signed=isa.neon, paired=paired)

    if paired:
        return Packing("conv16x8", packed)
    layout = f"conv16x4{f'w{spec.weight_bits}' if spec.packed else ''}"
    if not isa.neon:
        return Packing(layout, packed)

    def fits(values: Array) -> bool:
        unpacked = bit_planes.unpack(values[:, :, :-1], spec.weight_bits, spec.steps)
        return pairs_stay_in_words(unpacked)

    return Packing(f"{layout}s", packed, lambda values: isa.dotprod or fits(values))


def of_depthwise(spec: DepthwiseSpec, isa: Isa, widest: int, arguments: int) -> Packings:
    """Return how the arguments of a depthwise convolution are packed for an instruction set."""
    pack = functools.partial(depthwise_spec.pack_weight, widest=widest, signed=isa.neon)
    weight = Packing(f"depthwise{widest}", pack)
    if isa.neon:
        sums = depthwise_spec.packed_channels(spec.geometry.channels) * depthwise_spec.MISSING
        weight = Packing(f"depthwise{widest}s", pack, lambda v: isa.dotprod or pairs_stay_in_words(v[:-sums]))
    packing = of_arguments(spec.product, weight, arguments)
    if not spec.short:
        return packing
    ordered = Packing(f"quarters{widest}", lambda v: depthwise_spec.pack_channels(v, widest))
    return (None, weight, ordered, ordered, *packing[4:])
