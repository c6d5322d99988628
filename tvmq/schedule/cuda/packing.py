"""How constants lie in a GPU's memory.

A product's weights are [groups, outputs, depth], outputs padded to 32 and depth to 64 by zeros. Of 32
outputs, line 8 j + 2 t + e is output 8 t + 2 j + e: tensor cores give a thread two neighbouring columns of
each tile of 8, so it comes to hold 8 neighbouring outputs of four tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

OUTPUT_BLOCK, DEPTH_BLOCK = 32, 64
QUAD = 4  # channels of a depthwise convolution that a thread has

Array = npt.NDArray[Any]
Int8s = npt.NDArray[np.int8]


def padded(length: int, block: int) -> int:
    """Return length rounded up to whole blocks."""
    return -(-length // block) * block


def pack_product(weight: Int8s, groups: int = 1) -> Int8s:
    """Return int8 [..., inputs of a group, outputs] as [groups, outputs, depth]."""
    flat = weight.reshape(-1, groups, weight.shape[-1] // groups).transpose(1, 2, 0)
    outputs, depth = flat.shape[1:]
    wide = np.pad(flat, ((0, 0), (0, -outputs % OUTPUT_BLOCK), (0, -depth % DEPTH_BLOCK)))
    tiles = wide.reshape(groups, -1, 4, 4, 2, wide.shape[2])  # block, t, j, e
    return np.ascontiguousarray(tiles.transpose(0, 1, 3, 2, 4, 5).reshape(wide.shape))


def unpack_product(packed: Int8s, shape: tuple[int, ...]) -> Int8s:
    """Return what pack_product was given."""
    groups, outputs = len(packed), shape[-1]
    tiles = packed.reshape(groups, -1, 4, 4, 2, packed.shape[2]).transpose(0, 1, 3, 2, 4, 5)
    depth = int(np.prod(shape[:-1]))
    flat = tiles.reshape(packed.shape)[:, : outputs // groups, :depth]
    return np.ascontiguousarray(flat.transpose(2, 0, 1).reshape(shape))


def pack_taps(weight: Int8s) -> Int8s:
    """Return a depthwise weight int8 [rows, columns, 1, channels] as [taps, channels padded to 4]."""
    flat = weight.reshape(-1, weight.shape[-1])
    return np.ascontiguousarray(np.pad(flat, ((0, 0), (0, -flat.shape[1] % QUAD))))


def unpack_taps(packed: Int8s, shape: tuple[int, ...]) -> Int8s:
    """Return what pack_taps was given."""
    return np.ascontiguousarray(packed[:, : shape[-1]].reshape(shape))


def pack_channels(values: Array) -> Array:
    """Return values [outputs] with the last one repeated up to a multiple of 32."""
    return np.pad(values, (0, -len(values) % OUTPUT_BLOCK), mode="edge")


UNPACK: Mapping[str, Callable[[Array, tuple[int, ...]], Array]] = MappingProxyType(
    {
        "cuda_product": unpack_product,
        "cuda_taps": unpack_taps,
        "cuda_channels": lambda packed, shape: np.ascontiguousarray(packed[: shape[0]]),
    }
)
