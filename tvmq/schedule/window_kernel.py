"""The loops of a kernel whose window passes over an image: units of work, lines of pixels, register tiles.

Implicit GEMM: no patches are written to memory. A tile of sums, some pixels of one line times some groups of
16 outputs, stays in registers while the window passes; what a kernel adds to them, and what it stores, is a
subclass's. Where there is padding, each unit of work first copies its lines into scratch with the padding
around them. A last tile that does not fit is moved up: it computes some sums twice, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import const

from tvmq.schedule.conv_tiles import ConvDecision, Extents, Windows
from tvmq.schedule.linear_spec import LANES
from tvmq.schedule.padded_band import padded_band, row_size
from tvmq.schedule.vectors import Buffer, Expr, whole

WRITTEN = {"out", "copy"}  # of a kernel's buffers


class WindowKernel:
    """Emits the statements of one kernel; what they share are its fields."""

    def __init__(
        self, windows: Windows, decision: ConvDecision, arguments: Mapping[str, Buffer], *, sums: str
    ) -> None:
        self.windows, self.decision, self.arguments = windows, decision, arguments
        self.x, self.weight = arguments["x"], arguments["weight"]
        self.pixels, self.columns = decision.pixel_tile, decision.column_tile
        self.extents = Extents.of(windows, self.pixels, self.columns)
        self.band_lines = ceil(self.extents.lines / decision.bands)
        self.part_columns = ceil(self.extents.columns / decision.parts)
        self.stride = windows.geometry.stride_columns * windows.geometry.channels
        self.held, self.sums = (LANES,), sums  # shape and dtype of a buffer of sums
        self.pad_value, self.flipped = 0, False  # see padded_band
        self.unrolled = (
            False  # whether the taps of a row are code side by side, which then share what they load
        )
        self.line_size = row_size(windows.geometry)  # without padding, if the input is read where it lies

    def emit(self) -> None:
        units = self.extents.images * self.decision.bands * self.decision.parts
        loop = T.parallel if self.decision.parallel else T.serial
        with loop(units) as unit, T.sblock("unit"):
            index = T.axis.spatial(units, unit)
            T.reads(*(whole(b) for name, b in self.arguments.items() if name not in WRITTEN))
            T.writes(*(whole(b) for name, b in self.arguments.items() if name in WRITTEN))
            self.acc = [
                T.sblock_alloc_buffer(self.held, self.sums) for _ in range(self.pixels * self.columns)
            ]
            part, band = index % self.decision.parts, index // self.decision.parts
            self.image = T.bind(band // self.decision.bands)
            first = band % self.decision.bands * self.band_lines
            self.first_line = T.bind(T.min(first, self.extents.lines - self.band_lines))
            self.source = self._direct() if self.windows.direct else self._padded()
            columns = self.extents.columns
            self.first_column = T.bind(T.min(part * self.part_columns, columns - self.part_columns))
            order = (self.part_columns, self.band_lines, self.extents.tiles)
            if self.decision.outer == "columns":
                with T.grid(*order) as (column, line, tile):
                    self._tile(column, line, tile)
            else:
                with T.grid(*order[1:], order[0]) as (line, tile, column):
                    self._tile(column, line, tile)

    def _direct(self) -> Buffer:
        geometry = self.windows.geometry
        self.origin = self.image * (geometry.rows * self.line_size)
        self.origin += self.first_line * (0 if self.windows.flat else geometry.stride_rows * self.line_size)
        self.origin = T.bind(self.origin)
        size = geometry.batch * geometry.rows * self.line_size
        return T.decl_buffer((size,), str(self.x.dtype), data=self.x.data)

    def _padded(self) -> Buffer:
        self.origin = const(0, "int32")
        return padded_band(
            self.windows.geometry,
            self.x,
            self.pad_value,
            self.image,
            self.first_line,
            self.band_lines,
            flipped=self.flipped,
        )

    def _tile(self, column: Expr, line: Expr, tile: Expr) -> None:
        """One register tile: its sums, then what is stored of them."""
        windows, g = self.windows, self.windows.geometry
        last = windows.column_groups - self.columns
        group = T.bind(T.min((self.first_column + column) * self.columns, last))
        if windows.flat:
            pixel = T.bind(T.min((self.first_line + line) * self.pixels, self.extents.width - self.pixels))
            base, row = T.bind(pixel * g.channels), pixel
        else:
            pixel = T.bind(T.min(tile * self.pixels, self.extents.width - self.pixels))
            start = line * (g.stride_rows * self.line_size) + pixel * (g.stride_columns * g.channels)
            base = T.bind(self.origin + start)
            row = (self.image * g.out_rows + self.first_line + line) * g.out_columns + pixel
        if g.groups > 1:
            base = T.bind(base + self._first_channel(group))
        self._start(group)
        self._next_groups(group, line * self.extents.tiles + tile)
        across_loop = T.unroll if self.unrolled else T.serial
        with T.serial(g.kernel_rows) as down, across_loop(g.taps) as across:
            window = down * (g.dilation_rows * self.line_size) + across * (g.dilation_columns * g.channels)
            segment, offset = T.bind(down * g.taps + across), T.bind(base + window)
            self._segment(group, segment, offset)
        self._store(row, group)

    def _next_groups(self, group: Expr, tile: Expr) -> None:
        """Choose the groups of the next column tile whose weights this tile of pixels asks for."""
        # Where few tiles of pixels pass, each asks for more, so that all of them are asked for.
        self.ahead = []
        share = ceil(self.columns / (self.band_lines * self.extents.tiles)) if self.decision.prefetch else 0
        for number in range(share):
            which = T.min(tile * share + number, self.columns - 1)
            last = self.windows.column_groups - 1
            self.ahead.append(T.bind(T.min(group + self.columns + which, last)))

    def _first_channel(self, group: Expr) -> Expr:
        """Return the first channel of the input that a tile from this group of outputs on sees."""
        raise NotImplementedError

    def _start(self, group: Expr) -> None:
        """Emit what the sums of a tile begin with."""
        raise NotImplementedError

    def _segment(self, group: Expr, segment: Expr, offset: Expr) -> None:
        """Add to the sums what one segment of the window, whose first element is at offset, gives."""
        raise NotImplementedError

    def _store(self, row: Expr, group: Expr) -> None:
        """Store what becomes of a tile's sums."""
        raise NotImplementedError
