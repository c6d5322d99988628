"""How a 2-D integer tensor [rows, channels] stands for a value of any shape.

Linears, norms and attention work on rows of channels. A value keeps that storage through reshapes and
permutations that only regroup its rows, split its channels or move the channel axis (NCHW <-> NHWC);
they cost nothing at run time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """The logical shape is rows with the channel dimensions inserted at position."""

    rows: tuple[int, ...]
    position: int
    channel: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the logical shape."""
        return (*self.rows[: self.position], *self.channel, *self.rows[self.position :])

    @property
    def matrix(self) -> tuple[int, int]:
        """Return the stored shape, [rows, channels]."""
        return math.prod(self.rows), math.prod(self.channel)

    @property
    def is_channels_last(self) -> bool:
        """Whether the logical order is the stored order."""
        return self.position == len(self.rows)

    def to_stored_order(self) -> list[int]:
        """Return the permutation of logical axes that puts the channel dimensions last."""
        channel = range(self.position, self.position + len(self.channel))
        return [axis for axis in range(len(self.shape)) if axis not in channel] + list(channel)

    def reshaped(self, shape: Sequence[int]) -> RowsLayout | None:
        """Return the layout of the same storage seen as shape, None if the channels do not stay together."""
        before, width = math.prod(self.rows[: self.position]), math.prod(self.channel)
        for start in range(len(shape)):
            if math.prod(shape[:start]) != before:
                continue
            for stop in range(start + 1, len(shape) + 1):
                if math.prod(shape[start:stop]) == width:
                    rows = (*shape[:start], *shape[stop:])
                    return RowsLayout(tuple(rows), start, tuple(shape[start:stop]))
        return None

    def permuted(self, axes: Sequence[int]) -> RowsLayout | None:
        """Return the layout after permute_dims, None if stored rows or channels would change order."""
        shape = self.shape
        channel = range(self.position, self.position + len(self.channel))
        start = next(i for i, axis in enumerate(axes) if axis in channel)
        moved = list(axes[start : start + len(self.channel)])
        rows = [axis for axis in axes if axis not in channel]
        if moved != list(channel) or not _increasing([axis for axis in rows if shape[axis] > 1]):
            return None
        return RowsLayout(tuple(shape[axis] for axis in rows), start, self.channel)


def channels_last(shape: Sequence[int], channel_dims: int = 1) -> RowsLayout:
    """Return the layout whose last channel_dims dimensions are the channels."""
    cut = len(shape) - channel_dims
    return RowsLayout(tuple(shape[:cut]), cut, tuple(shape[cut:]))


def _increasing(values: Sequence[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
