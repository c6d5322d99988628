"""What one integer convolution kernel computes, and the layout of what it reads.

A pixel of the result sees segments of the input: bytes that lie together. Without dilation and groups these
are the rows of the kernel, kernel columns * channels bytes each; else the channels of each tap. Weights are
packed [groups of 16 outputs, segments, steps, 16, 4]: a step is four bytes of a segment, whose last step is
filled up with zeros. Those of fewer than 8 bits share bytes with those of other steps, see bit_planes.

A product of matrices is a convolution of one line of pixels by a window of one.

Where pixels are made signed (see dots.signed), each segment has one more vector at its end. That of the first
segment holds 16 int32: 128 times the sum of an output's weights; the others hold zeros.

Where pixels are multiplied in pairs, two steps lie together, [16, 8], and their number is even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq import bit_planes
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.isa import Isa
from tvmq.schedule.linear_spec import DEPTH, LANES, LinearSpec, epilogue_buffers

Int8s = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """One kernel: the convolution of uint8, and what happens to its sums."""

    geometry: ConvGeometry
    product: LinearSpec  # rows: the pixels of the result; inputs: the channels that one output sees
    pad_value: int = 0
    weight_bits: int = 8  # fewer are packed: see bit_planes

    @property
    def steps(self) -> int:
        """Steps of a segment."""
        return -(-self.geometry.segment // DEPTH)

    @property
    def packed(self) -> bool:
        """Whether several weights share a byte."""
        return self.weight_bits < bit_planes.BYTE

    @property
    def registers(self) -> int:
        """Vectors of 64 bytes that hold the weights of a segment for 16 outputs."""
        return bit_planes.registers(self.weight_bits, self.steps)

    @property
    def direct(self) -> bool:
        """Whether the input can be read where it lies: nothing around it, and nothing behind a segment."""
        return not self.geometry.padded and self.geometry.segment % DEPTH == 0

    @property
    def flat(self) -> bool:
        """Whether all pixels are one line."""
        return self.geometry.pointwise and self.direct

    @property
    def column_groups(self) -> int:
        """Groups of 16 outputs."""
        return self.product.groups

    @property
    def lanes_per_group(self) -> int:
        """Groups of 16 outputs that see the same channels."""
        return -(-self.geometry.outputs // self.geometry.groups // LANES)


def supports(spec: ConvSpec) -> str | None:
    """Return why there is no kernel for spec, None when there is one."""
    geometry = spec.geometry
    if geometry.groups > 1 and geometry.outputs // geometry.groups % LANES:
        return f"{geometry.outputs // geometry.groups} outputs per group are not a multiple of {LANES}"
    return None


def in_pairs(spec: ConvSpec, isa: Isa) -> bool:
    """Whether two pixels are multiplied by two outputs at once, 8 bytes each: pixels as they are."""
    return isa.i8mm and not spec.packed


def vectors(spec: ConvSpec, isa: Isa) -> int:
    """Return the vectors of 64 bytes that a segment of 16 outputs has in memory."""
    if in_pairs(spec, isa):
        return spec.steps + spec.steps % 2
    return spec.registers + isa.neon


def buffers(spec: ConvSpec, isa: Isa) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of the kernel's parameters, in their order."""
    g = spec.geometry
    segments = g.kernel_rows * g.taps
    return {
        "x": ((g.batch * g.rows * g.columns, g.channels), "uint8"),
        "weight": ((spec.product.groups, segments, vectors(spec, isa), LANES * DEPTH), "int8"),
        **epilogue_buffers(spec.product),
    }


def pack_rows(
    weight: Int8s, bits: int = bit_planes.BYTE, *, signed: bool = False, paired: bool = False
) -> Int8s:
    """Return int8 [rows, columns, inputs, outputs] packed, rows as segments; signed, paired: the pixels."""
    rows, columns, inputs, outputs = weight.shape
    return _pack(weight.reshape(rows, columns * inputs, outputs), bits, signed, paired)


def pack_taps(
    weight: Int8s, bits: int = bit_planes.BYTE, *, signed: bool = False, paired: bool = False
) -> Int8s:
    """Return int8 [rows, columns, inputs, outputs] packed, taps as segments; signed, paired: the pixels."""
    rows, columns, inputs, outputs = weight.shape
    return _pack(weight.reshape(rows * columns, inputs, outputs), bits, signed, paired)


def unpack_weight(
    packed: Int8s,
    shape: tuple[int, ...],
    bits: int = bit_planes.BYTE,
    *,
    signed: bool = False,
    paired: bool = False,
) -> Int8s:
    """Return int8 [rows, columns, inputs, outputs], or [inputs, outputs], whichever way it was packed."""
    rows, columns, inputs, outputs = (1, 1, *shape)[-4:]
    packed = packed[:, :, :-1] if signed else packed
    groups, segments = packed.shape[:2]
    length = rows * columns * inputs // segments
    steps = -(-length // DEPTH)
    packed = _swapped(packed, (LANES, 2))[:, :, :steps] if paired else packed
    values = bit_planes.unpack(packed, bits, steps)
    tiles = values.reshape(groups, segments, steps, LANES, DEPTH).transpose(1, 2, 4, 0, 3)
    flat = tiles.reshape(segments, steps * DEPTH, groups * LANES)
    return np.ascontiguousarray(flat[:, :length, :outputs].reshape(shape))


def _swapped(packed: Int8s, inner: tuple[int, int]) -> Int8s:
    """Return packed with two inner axes, of blocks of DEPTH bytes in every two vectors, exchanged."""
    blocks = packed.reshape(*packed.shape[:2], -1, *inner, DEPTH)
    return np.ascontiguousarray(blocks.swapaxes(3, 4)).reshape(packed.shape)


def _pack(weight: npt.NDArray[Any], bits: int, signed: bool, paired: bool) -> Int8s:
    segments, length, outputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -length % DEPTH), (0, -outputs % LANES)))
    tiles = padded.reshape(segments, -1, DEPTH, padded.shape[2] // LANES, LANES).transpose(3, 0, 1, 4, 2)
    values = np.ascontiguousarray(tiles.reshape(*tiles.shape[:3], LANES * DEPTH))
    packed = bit_planes.pack(values, bits)
    if paired:
        return _swapped(np.pad(packed, ((0, 0), (0, 0), (0, packed.shape[2] % 2), (0, 0))), (2, LANES))
    if not signed:
        return packed
    missing = np.zeros((len(packed), segments, LANES), "<i4")
    missing[:, 0] = 128 * padded.sum((0, 1), np.int32).reshape(-1, LANES)
    return np.concatenate([packed, missing.view(np.int8)[:, :, None]], axis=2)
