"""What one float32 convolution kernel computes, and the layout of what it reads.

Outputs lie in vectors of 16: of one group of the convolution, whose inputs are broadcast, or of as many whole
groups as there is room for, whose inputs are put in order lane by lane (a depthwise convolution is the case
where they are in order already). Lanes that are left over have zeros as weights.

As in conv_spec, a pixel of the result sees segments of the input, and weights are packed
[vectors, segments, steps, 16]: a step is one input of each lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.linear_spec import LANES

Floats = npt.NDArray[np.float32]
SPAN = 2 * LANES  # inputs that may be put in order for a vector
FLOAT = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatConvSpec:
    """One kernel: the convolution, and what happens to its sums."""

    geometry: ConvGeometry
    bias: bool = False
    low: float | None = None  # limits of the result, None: none
    high: float | None = None

    @property
    def group_outputs(self) -> int:
        """Outputs of a group of the convolution."""
        return self.geometry.outputs // self.geometry.groups

    @property
    def joined(self) -> int:
        """Groups of the convolution that share a vector; 1: none do."""
        g = self.geometry
        room = min(LANES // self.group_outputs, SPAN // g.group_inputs, g.groups)
        return max(room, 1) if g.groups > 1 else 1

    @property
    def mixed(self) -> bool:
        """Whether the lanes of a vector see different inputs."""
        return self.joined > 1

    @property
    def vectors_per_group(self) -> int:
        """Vectors of a group of the convolution, where none share one."""
        return -(-self.group_outputs // LANES)

    @property
    def column_groups(self) -> int:
        """Vectors of outputs."""
        groups = -(-self.geometry.groups // self.joined)
        return groups if self.mixed else groups * self.vectors_per_group

    @property
    def steps(self) -> int:
        """Inputs of a lane in a segment."""
        return self.geometry.segment

    @property
    def span(self) -> int:
        """Inputs that are read at once and put in order: a power of two."""
        return 1 << (self.joined * self.geometry.group_inputs - 1).bit_length()

    @property
    def direct(self) -> bool:
        """Whether the input can be read where it lies: nothing around it, and nothing behind a pixel."""
        fits = not self.mixed or self.span * self.column_groups == self.geometry.channels
        return not self.geometry.padded and fits

    @property
    def flat(self) -> bool:
        """Whether all pixels are one line."""
        return self.geometry.pointwise and self.direct

    def outputs_of(self, vector: int) -> range:
        """Return the outputs in the first lanes of a vector."""
        if self.mixed:
            first, width = vector * self.joined * self.group_outputs, self.joined * self.group_outputs
            return range(first, min(first + width, self.geometry.outputs))
        group, part = divmod(vector, self.vectors_per_group)
        first, end = group * self.group_outputs + part * LANES, (group + 1) * self.group_outputs
        return range(first, min(first + LANES, end))

    def order(self, step: int) -> list[int]:
        """Return, for every lane of a vector, which of the inputs that are read at once a step takes."""
        g = self.geometry
        lanes = self.joined * self.group_outputs
        return [n // self.group_outputs * g.group_inputs + step if n < lanes else 0 for n in range(LANES)]


def buffers(spec: FloatConvSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of the kernel's parameters, in their order."""
    g = spec.geometry
    bias = {"bias": ((padded_outputs(g.outputs),), FLOAT)} if spec.bias else {}
    return {
        "x": ((g.batch * g.rows * g.columns, g.channels), FLOAT),
        "weight": ((spec.column_groups, g.kernel_rows * g.taps, spec.steps, LANES), FLOAT),
        **bias,
        "out": ((g.pixels, g.outputs), FLOAT),
    }


def padded_outputs(outputs: int) -> int:
    """Return how many numbers a bias holds, so that a vector can be read from any output on."""
    return outputs + LANES - 1


def pack_float_bias(bias: Floats) -> Floats:
    """Return a bias of any shape as a vector, with zeros behind it."""
    return np.pad(bias.reshape(-1), (0, padded_outputs(bias.size) - bias.size))


def unpack_float_bias(packed: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the inverse of pack_float_bias."""
    return np.ascontiguousarray(packed[: 1 - LANES].reshape(shape))


def pack_float_conv(weight: Floats, spec: FloatConvSpec) -> Floats:
    """Return float32 [outputs, inputs of a group, kernel rows, kernel columns] packed."""
    taken = weight.transpose(2, 3, 1, 0)  # [rows, columns, inputs, outputs]
    packed = np.zeros((spec.column_groups, *taken.shape[:3], LANES), np.float32)
    for vector in range(spec.column_groups):
        outputs = spec.outputs_of(vector)
        packed[vector, ..., : len(outputs)] = taken[..., outputs.start : outputs.stop]
    return packed.reshape(buffers(spec)["weight"][0])


def unpack_float_conv(packed: Floats, shape: tuple[int, ...], groups: int) -> Floats:
    """Return float32 [outputs, inputs of a group, kernel rows, kernel columns], of so many groups."""
    outputs, inputs, rows, columns = shape
    sizes: dict[str, Any] = {"batch": 1, "rows": rows, "columns": columns, "groups": groups}
    window = {"kernel_rows": rows, "kernel_columns": columns}
    geometry = ConvGeometry(channels=groups * inputs, outputs=outputs, **sizes, **window)
    spec, found = FloatConvSpec(geometry=geometry), np.empty((rows, columns, inputs, outputs), np.float32)
    taps = packed.reshape(len(packed), rows, columns, inputs, LANES)
    for vector in range(spec.column_groups):
        own = spec.outputs_of(vector)
        found[..., own.start : own.stop] = taps[vector, ..., : len(own)]
    return np.ascontiguousarray(found.transpose(3, 2, 0, 1))
