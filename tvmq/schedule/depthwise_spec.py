"""What one integer depthwise kernel computes, and the layout of what it reads.

Channels are computed in chunks as wide as a register, then narrower ones; where the last 16 do not fit, a
chunk of 16 is moved down over channels that another one has computed already. The sums of a chunk are four
vectors: vector s holds every fourth channel, from channel s on. Weights, and bias and shift of the short
epilogue, are packed in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, epilogue_buffers

Array = npt.NDArray[Any]
QUARTERS = 4  # vectors of sums of a chunk
MISSING = 4  # bytes per channel of what follows the weights where pixels are made signed
MAX_COLUMNS = 11  # of the kernel; all columns of a pixel are unrolled


@dataclass(frozen=True, slots=True)
class Chunk:
    """Channels computed together."""

    start: int  # its first channel
    width: int  # a power of two, at least 16
    place: int  # where its channels begin in what is packed


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseSpec:
    """One kernel: a convolution of uint8 with weights for each channel, and what happens to its sums."""

    geometry: ConvGeometry
    product: LinearSpec  # rows: the pixels of the result; inputs: 1
    pad_value: int = 0

    @property
    def quads(self) -> int:
        """Rows of the kernel in fours, the last one filled up with zeros."""
        return -(-self.geometry.kernel_rows // DEPTH)

    @property
    def short(self) -> bool:
        """Whether shifts and saturation to bytes are all that follows the sums, but for a table."""
        product = self.product
        plain = not (product.rescaled or product.residual or product.copy)
        return plain and product.out_dtype in ("uint8", "int8")


def supports(spec: DepthwiseSpec) -> str | None:
    """Return why there is no kernel for spec, None when there is one."""
    geometry = spec.geometry
    if geometry.channels < LANES:
        return f"{geometry.channels} channels are fewer than {LANES}"
    if geometry.kernel_columns > MAX_COLUMNS:
        return f"{geometry.kernel_columns} kernel columns are over {MAX_COLUMNS}"
    return None


def chunks(channels: int, widest: int) -> Iterator[Chunk]:
    """Yield the chunks that cover 16 or more channels."""
    start = place = 0
    width = widest
    while start < channels:
        while width > channels - start and width > LANES:
            width //= 2
        start = min(start, channels - width)
        yield Chunk(start, width, place)
        start, place = start + width, place + width


def packed_channels(channels: int) -> int:
    """Return the channels of all chunks together."""
    return -(-channels // LANES) * LANES


def buffers(spec: DepthwiseSpec, isa: Isa) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of the kernel's parameters, in their order."""
    g = spec.geometry
    per_channel = spec.quads * g.kernel_columns * DEPTH
    return {
        "x": ((g.batch * g.rows * g.columns, g.channels), "uint8"),
        "weight": ((packed_channels(g.channels) * (per_channel + MISSING * isa.neon),), "int8"),
        **epilogue_buffers(spec.product),
    }


def pack_weight(weight: Array, widest: int, *, signed: bool = False) -> Array:
    """Return int8 [rows, columns, 1, channels] packed: chunk, quad, column, vector, channel, row.

    Where pixels are made signed (see dots.signed), 128 times the sum of every channel follows: int32, in the
    order of pack_channels.
    """
    rows, columns, _, channels = weight.shape
    padded = np.pad(weight[:, :, 0], ((0, -rows % DEPTH), (0, 0), (0, 0)))
    quads = padded.reshape(-1, DEPTH, columns, channels)
    parts = []
    for chunk in chunks(channels, widest):
        own = quads[..., chunk.start : chunk.start + chunk.width]
        split = own.reshape(*quads.shape[:3], -1, QUARTERS)
        parts.append(split.transpose(0, 2, 4, 3, 1).ravel())
    if signed:
        missing = 128 * weight.sum((0, 1, 2), np.int32)
        parts.append(pack_channels(missing, widest).astype("<i4").view(np.int8))
    return np.concatenate(parts)


def unpack_weight(packed: Array, shape: tuple[int, ...], widest: int) -> Array:
    """Return int8 [rows, columns, 1, channels], the inverse of pack_weight."""
    rows, columns, _, channels = shape
    count = -(-rows // DEPTH)
    quads = np.zeros((count, DEPTH, columns, channels), packed.dtype)
    per_channel = count * columns * DEPTH
    for chunk in chunks(channels, widest):
        own = packed[chunk.place * per_channel : (chunk.place + chunk.width) * per_channel]
        split = own.reshape(count, columns, QUARTERS, -1, DEPTH)
        values = split.transpose(0, 4, 1, 3, 2).reshape(count, DEPTH, columns, chunk.width)
        quads[..., chunk.start : chunk.start + chunk.width] = values
    return np.ascontiguousarray(quads.reshape(-1, columns, 1, channels)[:rows])


def pack_channels(values: Array, widest: int) -> Array:
    """Return one value per channel in the order of the sums: chunk, vector, channel."""
    parts = []
    for chunk in chunks(len(values), widest):
        own = values[chunk.start : chunk.start + chunk.width].reshape(-1, QUARTERS)
        parts.append(own.T.ravel())
    return np.concatenate(parts)


def unpack_channels(packed: Array, shape: tuple[int, ...], widest: int) -> Array:
    """Return values [channels], the inverse of pack_channels."""
    values = np.zeros(shape, packed.dtype)
    for chunk in chunks(shape[0], widest):
        own = packed[chunk.place : chunk.place + chunk.width]
        values[chunk.start : chunk.start + chunk.width] = own.reshape(QUARTERS, -1).T.ravel()
    return values
