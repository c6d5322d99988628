"""Write integer transposed convolutions as rows of patches times matrices.

One product per output phase, stride^2 of them: every output pixel of a phase sees the same few taps, so
nothing is multiplied by the zeros that dilation would insert.

Patches are cut with plain Relax ops (reshape, pad, strided_slice, concat) on stored integers; what padding
adds is the zero point, that is, real zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax import op

from tvmq.formats import QuantParams
from tvmq.passes.layouts import RowsLayout, channels_last
from tvmq.passes.lowering_values import Emitter, Expr, Stored

Int8s = npt.NDArray[np.int8]
MULTIPLE = 4  # dot-product instructions take four products at a time


def transposed_phases(
    emit: Emitter, x: Stored, weight: Int8s, attrs: Any
) -> tuple[tuple[int, int, int], tuple[int, int], list[tuple[Expr, Int8s]]]:
    """Return ((B, H, W) of one phase, strides, [(patches, matrix)] in row-major order of the phases).

    weight is IOHW. Supported where every phase has the size of the input: kernel = stride + 2 * padding,
    no output padding (see supports_transposed).
    """
    height, width = weight.shape[2:]
    batch, _, rows, columns = x.layout.shape
    strides = tuple(int(s) for s in attrs.strides)
    top, left = int(attrs.padding[0]), int(attrs.padding[1])
    reach = (math.ceil(height / strides[0]), math.ceil(width / strides[1]))
    nhwc = _pad(emit, _nhwc(emit, x), x.params, (reach[0], reach[0], reach[1], reach[1]))
    products = []
    for phase_y in range(strides[0]):
        for phase_x in range(strides[1]):
            taps, blocks = [], []
            for ky in range((phase_y + top) % strides[0], height, strides[0]):
                for kx in range((phase_x + left) % strides[1], width, strides[1]):
                    dy = (phase_y + top - ky) // strides[0] + reach[0]
                    dx = (phase_x + left - kx) // strides[1] + reach[1]
                    taps.append(_tap(emit, nhwc, (dy, dx), (rows, columns), (1, 1)))
                    blocks.append(weight[:, :, ky, kx])
            products.append(_rows(emit, taps, np.concatenate(blocks, axis=0)))
    return (batch, rows, columns), (strides[0], strides[1]), products


def supports_transposed(weight_shape: tuple[int, ...], attrs: Any) -> bool:
    """Whether transposed_phases covers this conv2d_transpose."""
    plain = int(attrs.groups) == 1 and not any(int(p) for p in attrs.output_padding)
    undilated = all(int(d) == 1 for d in attrs.dilation)
    plain = plain and (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "IOHW")
    padding = [int(p) for p in attrs.padding]
    fits = all(
        size == int(stride) + 2 * pad
        for size, stride, pad in zip(weight_shape[2:], attrs.strides, padding[:2], strict=True)
    )
    return plain and undilated and padding[:2] == padding[2:] and fits


def interleave(
    emit: Emitter, parts: list[Expr], size: tuple[int, int, int], strides: tuple[int, int], out: QuantParams
) -> Stored:
    """Return the NCHW value whose phases are parts, each [B*H*W, C], in row-major order."""
    batch, rows, columns = size
    channels = int(parts[0].ty.shape[1])
    split = [emit(op.reshape(part, (batch, rows, 1, columns, 1, channels))) for part in parts]
    bands = [emit(op.concat(split[y * strides[1] : (y + 1) * strides[1]], axis=4)) for y in range(strides[0])]
    dense = emit(op.concat(bands, axis=2))
    layout = RowsLayout((batch, rows * strides[0], columns * strides[1]), 1, (channels,))
    return Stored(out, layout, rows_var=emit(op.reshape(dense, layout.matrix)))


def _nhwc(emit: Emitter, x: Stored) -> Expr:
    batch, channels, rows, columns = x.layout.shape
    as_rows = emit.with_layout(x, RowsLayout((batch, rows, columns), 1, (channels,)))
    return emit(op.reshape(emit.rows(as_rows), (batch, rows, columns, channels)))


def _pad(emit: Emitter, nhwc: Expr, params: QuantParams, widths: tuple[int, int, int, int]) -> Expr:
    top, bottom, left, right = widths
    if not any(widths):
        return nhwc
    pads = [0, 0, top, bottom, left, right, 0, 0]
    return emit(op.nn.pad(nhwc, pads, "constant", params.zero_point))


def _tap(
    emit: Emitter, nhwc: Expr, offset: tuple[int, int], size: tuple[int, int], strides: tuple[int, ...]
) -> Expr:
    """Cut what one kernel position sees: [B, size..., C]."""
    begin = list(offset)
    end = [o + (n - 1) * s + 1 for o, n, s in zip(offset, size, strides, strict=True)]
    return emit(op.strided_slice(nhwc, axes=[1, 2], begin=begin, end=end, strides=list(strides)))


def _rows(emit: Emitter, taps: list[Expr], matrix: Int8s) -> tuple[Expr, Int8s]:
    """Join taps along the channels, padded with zero weights to a multiple of MULTIPLE."""
    inner = matrix.shape[0]
    lead = [int(d) for d in taps[0].ty.shape][:-1]
    missing = -inner % MULTIPLE
    if missing:
        dtype = str(taps[0].ty.dtype)
        taps = [*taps, relax.const(np.zeros((*lead, missing), dtype))]
        matrix = np.concatenate([matrix, np.zeros((missing, matrix.shape[1]), np.int8)])
    joined = taps[0] if len(taps) == 1 else emit(op.concat(taps, axis=len(lead)))
    rows = emit(op.reshape(joined, channels_last((math.prod(lead), inner + missing)).matrix))
    return rows, np.ascontiguousarray(matrix)
