"""How constants lie in a GPU's memory.

A product's weights are [groups, outputs, depth], outputs padded to 32 and depth to 64 by zeros; of a
convolution, what lies together of a window, a row or a tap, is padded to 8 before. Of 32 outputs, line
8 j + 2 t + e is output 8 t + 2 j + e: tensor cores give a thread two neighbouring columns of each tile of 8,
so it comes to hold 8 neighbouring outputs of four tiles.

Weights of 4 bits, which are the highest of their bytes (tvmq.bit_planes), can lie two to a byte: of 32
along the depth, byte i holds number i in its lower and number 16 + i in its higher four bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

OUTPUT_BLOCK, DEPTH_BLOCK, RUN_BLOCK = 32, 64, 8
NIBBLES = 16  # that lie together of either half of the bytes
QUAD = 4  # channels of a depthwise convolution that a thread has

Array = npt.NDArray[Any]
Int8s = npt.NDArray[np.int8]


def padded(length: int, block: int) -> int:
    """Return length rounded up to whole blocks."""
    return -(-length // block) * block


def pack_product(weight: Int8s, groups: int = 1, run: int | None = None) -> Int8s:
    """Return int8 [..., inputs of a group, outputs] as [groups, outputs, depth].

    run: inputs that lie together, by default all.
    """
    flat = weight.reshape(-1, groups, weight.shape[-1] // groups).transpose(1, 2, 0)
    if run is not None:
        runs = flat.reshape(*flat.shape[:2], -1, run)
        flat = np.pad(runs, ((0, 0), (0, 0), (0, 0), (0, -run % RUN_BLOCK))).reshape(*flat.shape[:2], -1)
    outputs, depth = flat.shape[1:]
    wide = np.pad(flat, ((0, 0), (0, -outputs % OUTPUT_BLOCK), (0, -depth % DEPTH_BLOCK)))
    tiles = wide.reshape(groups, -1, 4, 4, 2, wide.shape[2])  # block, t, j, e
    return np.ascontiguousarray(tiles.transpose(0, 1, 3, 2, 4, 5).reshape(wide.shape))


def pack_nibbles(packed: Int8s) -> Int8s:
    """Return int8 [..., depth] as pack_product gives it as [..., depth / 2].

    Raises ValueError where 4 bits are too few.
    """
    values = packed.view(np.uint8)
    if (values % NIBBLES).any():
        raise ValueError("pack_nibbles: weights of 4 bits are multiples of 16")
    halves = values.reshape(*packed.shape[:-1], -1, 2, NIBBLES)
    together = halves[..., 0, :] >> 4 | halves[..., 1, :]
    return together.reshape(*packed.shape[:-1], -1).view(np.int8)


def unpack_nibbles(packed: Int8s) -> Int8s:
    """Return what pack_nibbles was given."""
    values = packed.view(np.uint8).reshape(*packed.shape[:-1], -1, NIBBLES)
    halves = np.stack([values << 4, values & (NIBBLES - 1) << 4], axis=-2)
    return halves.reshape(*packed.shape[:-1], -1).view(np.int8)


def unpack_product(packed: Int8s, shape: tuple[int, ...], run: int | None = None) -> Int8s:
    """Return what pack_product was given."""
    groups, outputs, inputs = len(packed), shape[-1], int(np.prod(shape[:-1]))
    tiles = packed.reshape(groups, -1, 4, 4, 2, packed.shape[2]).transpose(0, 1, 3, 2, 4, 5)
    flat = tiles.reshape(packed.shape)[:, : outputs // groups]
    if run is not None:
        pitch = padded(run, RUN_BLOCK)
        runs = flat[:, :, : inputs // run * pitch].reshape(*flat.shape[:2], -1, pitch)
        flat = runs[..., :run].reshape(*flat.shape[:2], -1)
    return np.ascontiguousarray(flat[:, :, :inputs].transpose(2, 0, 1).reshape(shape))


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


Unpack = Callable[[Array, tuple[int, ...]], Array]
PRODUCTS: Mapping[str, Unpack] = MappingProxyType(
    {
        "cuda_product": unpack_product,
        "cuda_product_rows": lambda packed, shape: unpack_product(packed, shape, shape[1] * shape[2]),
        "cuda_product_taps": lambda packed, shape: unpack_product(packed, shape, shape[2]),
    }
)


def _of_nibbles(unpack: Unpack) -> Unpack:
    return lambda packed, shape: unpack(unpack_nibbles(packed), shape)


UNPACK: Mapping[str, Unpack] = MappingProxyType(
    {
        **PRODUCTS,
        **{f"{layout}_w4": _of_nibbles(unpack) for layout, unpack in PRODUCTS.items()},
        "cuda_taps": unpack_taps,
        "cuda_channels": lambda packed, shape: np.ascontiguousarray(packed[: shape[0]]),
    }
)
