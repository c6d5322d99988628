"""Some lines of an image copied with the padding around them, so that a kernel's loops have no borders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import tirx as T  # noqa: N812

from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.dots import signed
from tvmq.schedule.vectors import Buffer, Expr, load, splat, store, vector_type

BYTES = 64  # moved at once
SLACK = 64  # elements behind a band, which hold anything


def band_rows(geometry: ConvGeometry, lines: int) -> int:
    """Return the rows of the input, padding included, that so many lines of the result see."""
    reach = (geometry.kernel_rows - 1) * geometry.dilation_rows + 1
    return (lines - 1) * geometry.stride_rows + reach


def row_size(geometry: ConvGeometry) -> int:
    """Return the elements of a padded row."""
    return (geometry.columns + geometry.left + geometry.right) * geometry.channels


def padded_band(
    geometry: ConvGeometry,
    x: Buffer,
    pad_value: int,
    image: Expr,
    first_line: Expr,
    lines: int,
    *,
    flipped: bool = False,
) -> Buffer:
    """Emit the copy; return it, [band_rows(lines) * row_size + SLACK] elements of x's dtype.

    x is [batch * rows * columns, channels]; first_line: of the result. flipped: what is copied, uint8, is as
    dots.signed makes it.
    """
    g = geometry
    dtype = str(x.dtype)
    source = T.decl_buffer((g.batch * g.rows * g.columns * g.channels,), dtype, data=x.data)
    rows, width, most = band_rows(g, lines), row_size(g), BYTES // np.dtype(dtype).itemsize
    band = T.sblock_alloc_buffer((rows * width + SLACK,), dtype)
    left, right, copied = g.left * g.channels, g.right * g.channels, g.columns * g.channels
    pad_value ^= 128 if flipped else 0

    def moved(values: Expr) -> Expr:
        return signed(values) if flipped else values

    with T.serial(rows) as index:
        row = T.bind(first_line * g.stride_rows + index - g.top)
        start = T.bind(index * width)
        with T.If(T.And(row >= 0, row < g.rows)):
            with T.Then():
                _fill(band, start, left, pad_value)
                origin = T.bind((image * g.rows + row) * copied)
                _each_vector(
                    copied,
                    most,
                    lambda at, n: store(band, start + left + at, moved(load(source, origin + at, n))),
                )
                _fill(band, start + left + copied, right, pad_value)
            with T.Else():
                _fill(band, start, width, pad_value)
    return band


def _fill(band: Buffer, start: Expr, count: int, value: int) -> None:
    dtype = str(band.dtype)

    def put(at: Expr, lanes: int) -> None:
        store(band, start + at, splat(value, vector_type(dtype, lanes)))

    _each_vector(count, BYTES // np.dtype(dtype).itemsize, put)


def _each_vector(count: int, most: int, emit: Callable[[Expr, int], None]) -> None:
    """Call emit(offset, lanes) so that count elements are covered by vectors of `most`, then smaller ones."""
    whole = count // most
    if whole:
        with T.serial(whole) as index:
            emit(index * most, most)
    done, lanes = whole * most, most // 2
    while done < count:
        if done + lanes <= count:
            emit(done, lanes)
            done += lanes
        else:
            lanes //= 2
