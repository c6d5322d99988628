"""Second moments of what a site multiplies its weights by, in float and as the quantized stream has it.

Every multiplying site is G products of rows [R, K] with a matrix [K, N]: a linear is one; a convolution has
one for each group, its rows are the patches that the window sees, as its weight has them [inputs x window].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from tvmq.calibrate.calibration import InputMoments
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.plan.nodes import Node

Tensor = torch.Tensor

MOST_ROWS = 1 << 15  # of a site: more say no more, and an image has many that are alike
WIDEST = 8192  # K: beyond, a [K, K] matrix takes gigabytes
SMALLEST_NORM = 1e-6  # of the mean one: what an output row counts as at least


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means over rows; x is float, q the quantized stream's."""

    gram: Tensor  # E[q q^T] [G, K, K]
    cross: Tensor  # E[q x^T] [G, K, K]
    mean_q: Tensor  # [G, K]
    mean_x: Tensor
    rows: float  # of equal count that would say as much

    def centred(self) -> Moments:
        """Return the covariances: what counts where a bias makes up for the means."""
        outer = self.mean_q[:, :, None]
        return Moments(
            self.gram - outer @ self.mean_q[:, None, :],
            self.cross - outer @ self.mean_x[:, None, :],
            torch.zeros_like(self.mean_q),
            torch.zeros_like(self.mean_x),
            self.rows,
        )


def as_moments(seen: InputMoments) -> Moments:
    """Return what calibration kept of a linear's float inputs: what it quantizes is taken for exact."""
    gram, mean = torch.from_numpy(seen.gram)[None], torch.from_numpy(seen.mean)[None]
    return Moments(gram, gram, mean, mean, seen.rows)


def pooled(first: Moments, second: Moments) -> Moments:
    """Return the moments of two equal parts of the data together."""
    return Moments(
        (first.gram + second.gram) / 2,
        (first.cross + second.cross) / 2,
        (first.mean_q + second.mean_q) / 2,
        (first.mean_x + second.mean_x) / 2,
        first.rows + second.rows,
    )


def moments_of(
    node: Node, exact: Tensor, quantized: Tensor, importance: Tensor | None = None
) -> Moments | None:
    """Return the moments of a site's inputs [S, ...] of S batches; None for a transposed one or K too wide.

    Rows are thinned out evenly to MOST_ROWS. importance: what each row of a batch counts, [rows] of mean 1.
    """
    if node.kind == "conv2d_transpose" or inputs_of(node) > WIDEST:
        return None
    gram = cross = torch.empty(0)
    total_q = total_x = torch.empty(0)
    weight = squares = 0.0
    for q, x, counts in zip(
        _rows(node, quantized), _rows(node, exact), _counts(node, exact, importance), strict=True
    ):
        if weight == 0:
            groups, _, width = q.shape
            gram, cross = torch.zeros(groups, width, width), torch.zeros(groups, width, width)
            total_q, total_x = torch.zeros(groups, width), torch.zeros(groups, width)
        counted = q if counts is None else q * counts[:, None]
        turned = counted.transpose(1, 2)
        gram.baddbmm_(turned, q)
        cross.baddbmm_(turned, x)
        total_q += counted.sum(1)
        total_x += (x if counts is None else x * counts[:, None]).sum(1)
        weight += float(q.shape[1] if counts is None else counts.sum())
        squares += float(q.shape[1] if counts is None else counts.square().sum())
    return Moments(gram / weight, cross / weight, total_q / weight, total_x / weight, weight**2 / squares)


def inputs_of(node: Node) -> int:
    """Return K."""
    shape = [int(d) for d in node.call.args[1].ty.shape]
    return shape[0] if node.kind == "linear" else prod(shape[1:])


def as_matrices(node: Node, weight: Tensor) -> Tensor:
    """Return a site's weight as [G, K, N]; not for transposed convolutions."""
    if node.kind == "linear":
        return weight[None]
    groups = int(node.call.attrs.groups)
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def from_matrices(node: Node, matrices: Tensor) -> Tensor:
    """Return [G, K, N] in the shape of the site's weight, the inverse of as_matrices."""
    if node.kind == "linear":
        return matrices[0]
    shape = [int(d) for d in node.call.args[1].ty.shape]
    return matrices.transpose(1, 2).reshape(shape)


def _rows(node: Node, values: Tensor) -> Iterator[Tensor]:
    """Yield [G, R, K] of each batch, as many rows of each."""
    for value in values:
        rows = value.reshape(1, -1, value.shape[-1]) if node.kind == "linear" else _patches(node, value)
        yield rows[:, :: _stride(rows.shape[1] * len(values))]


def _counts(node: Node, values: Tensor, importance: Tensor | None) -> Iterator[Tensor | None]:
    """Yield what the rows of each batch count, [R]."""
    for _ in values:
        yield None if importance is None else importance[:: _stride(len(importance) * len(values))]


def _stride(rows: int) -> int:
    """Return which of so many rows to take: odd, so that all columns of an image are met."""
    step = ceil(rows / MOST_ROWS)
    return step | 1 if step > 1 else 1


def _patches(node: Node, value: Tensor) -> Tensor:
    """Return what the windows of a convolution see, [G, R, K]."""
    shape = tuple(int(d) for d in node.call.args[1].ty.shape)
    g = ConvGeometry.of(tuple(value.shape), shape, node.call.attrs)
    padded = F.pad(value, (g.left, g.right, g.top, g.bottom))
    columns = F.unfold(
        padded,
        (g.kernel_rows, g.kernel_columns),
        dilation=(g.dilation_rows, g.dilation_columns),
        stride=(g.stride_rows, g.stride_columns),
    )  # [batch, channels * window, pixels]
    split = columns.reshape(columns.shape[0], g.groups, -1, columns.shape[-1])
    return split.permute(1, 0, 3, 2).reshape(g.groups, -1, split.shape[2])
