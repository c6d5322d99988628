"""The sizes of a two-dimensional convolution of rows of pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

LANES = 16  # outputs that kernels compute together


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Data is [batch * rows * columns, channels], the result [pixels, outputs].

    Weights are [kernel rows, kernel columns, channels / groups, outputs].
    """

    batch: int
    rows: int
    columns: int
    channels: int
    outputs: int
    kernel_rows: int
    kernel_columns: int
    stride_rows: int = 1
    stride_columns: int = 1
    top: int = 0  # padding
    left: int = 0
    bottom: int = 0
    right: int = 0
    dilation_rows: int = 1
    dilation_columns: int = 1
    groups: int = 1

    @classmethod
    def of(cls, data: Sequence[int], weight: Sequence[int], attrs: Any) -> ConvGeometry:
        """Return the geometry of a conv2d of NCHW data with OIHW weights and these attributes."""
        batch, channels, rows, columns = data
        outputs, _, kernel_rows, kernel_columns = weight
        top, left, bottom, right = (int(p) for p in attrs.padding)
        return cls(
            batch=batch,
            rows=rows,
            columns=columns,
            channels=channels,
            outputs=outputs,
            kernel_rows=kernel_rows,
            kernel_columns=kernel_columns,
            stride_rows=int(attrs.strides[0]),
            stride_columns=int(attrs.strides[1]),
            top=top,
            left=left,
            bottom=bottom,
            right=right,
            dilation_rows=int(attrs.dilation[0]),
            dilation_columns=int(attrs.dilation[1]),
            groups=int(attrs.groups),
        )

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> ConvGeometry:
        """Return the geometry in the attributes of a composite."""
        return cls(**{field.name: int(attrs[field.name]) for field in fields(cls)})

    def attrs(self) -> dict[str, int]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def out_rows(self) -> int:
        """Rows of the result."""
        return (self.rows + self.top + self.bottom - self._reach[0]) // self.stride_rows + 1

    @property
    def out_columns(self) -> int:
        """Columns of the result."""
        return (self.columns + self.left + self.right - self._reach[1]) // self.stride_columns + 1

    @property
    def by_rows(self) -> bool:
        """Whether what a window sees of a row lies together, as one segment; else that of each tap does."""
        return self.groups == 1 and self.dilation_columns == 1

    @property
    def taps(self) -> int:
        """Segments of a row of the kernel."""
        return 1 if self.by_rows else self.kernel_columns

    @property
    def segment(self) -> int:
        """Inputs of a segment that an output sees."""
        return self.group_inputs * (self.kernel_columns if self.by_rows else 1)

    @property
    def _reach(self) -> tuple[int, int]:
        """Rows and columns of the input that one pixel of the result spans."""
        return (
            (self.kernel_rows - 1) * self.dilation_rows + 1,
            (self.kernel_columns - 1) * self.dilation_columns + 1,
        )

    @property
    def pixels(self) -> int:
        """Pixels of the result, of all images."""
        return self.batch * self.out_rows * self.out_columns

    @property
    def group_inputs(self) -> int:
        """Channels that one output sees."""
        return self.channels // self.groups

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any((self.top, self.left, self.bottom, self.right))

    @property
    def pointwise(self) -> bool:
        """Whether it is a product of every pixel with one matrix."""
        window = (self.kernel_rows, self.kernel_columns, self.stride_rows, self.stride_columns)
        return window == (1, 1, 1, 1) and not self.padded and self.groups == 1

    @property
    def depthwise(self) -> bool:
        """Whether every channel has weights of its own."""
        return self.channels == self.groups == self.outputs > 1


def merged(geometry: ConvGeometry, weight: npt.NDArray[np.int8]) -> tuple[ConvGeometry, npt.NDArray[np.int8]]:
    """Return the same convolution in fewer groups, whose outputs fill whole vectors.

    weight [kernel rows, kernel columns, inputs of a group, outputs] gets zeros where groups do not mix.
    Depthwise convolutions of 16 channels and more, which have a kernel of their own, stay as they are.
    """
    if geometry.groups == 1 or (geometry.depthwise and geometry.channels >= LANES):
        return geometry, weight
    group_outputs = geometry.outputs // geometry.groups
    joined = LANES // math.gcd(LANES, group_outputs)
    joined = joined if geometry.groups % joined == 0 else geometry.groups
    rows, columns, inputs, outputs = weight.shape
    blocks = weight.reshape(rows, columns, inputs, -1, joined, group_outputs)
    wide = np.zeros((rows, columns, joined, inputs, *blocks.shape[3:]), np.int8)
    for block in range(joined):
        wide[:, :, block, :, :, block] = blocks[:, :, :, :, block]
    fewer = replace(geometry, groups=geometry.groups // joined)
    return fewer, wide.reshape(rows, columns, joined * inputs, outputs)
