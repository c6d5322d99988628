"""Second moments of what a site multiplies its weights by, in float and as the quantized stream has it.

Every multiplying site is G products of rows [R, K] with a matrix [K, N]: a linear is one; a convolution has
one for each group, its rows are the patches that the window sees, as its weight has them [inputs x window].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd, prod

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from tvmq.calibrate.calibration import InputMoments
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.plan.nodes import Node

Tensor = torch.Tensor

MOST_ROWS = 1 << 15  # of a site: more say no more, and an image has many that are alike
WIDEST = 8192  # K: beyond, a [K, K] matrix takes gigabytes
UNFOLDED = 1 << 24  # numbers that the patches of a convolution take at once
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


def as_covariances(seen: InputMoments) -> Moments:
    """Return the same about the mean."""
    covariance, mean = torch.from_numpy(seen.covariance)[None], torch.zeros(1, len(seen.mean))
    return Moments(covariance, covariance, mean, mean, seen.rows)


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
    node: Node,
    exact: Tensor,
    quantized: Tensor,
    importance: Tensor | None = None,
    *,
    centred: bool = False,
) -> Moments | None:
    """Return the moments of a site's inputs [S, ...] of S batches; None for a transposed one or K too wide.

    Rows are thinned out evenly to MOST_ROWS. importance: what each row counts, [rows] of all batches or
    [S, rows] of each.
    centred: about the means (covariances).
    """
    if node.kind == "conv2d_transpose" or inputs_of(node) > WIDEST:
        return None
    rows = prod(node.shape) // _outputs_of(node)
    width = node.shape[-2] if node.kind == "linear" and len(node.shape) > 1 else node.shape[-1]
    stride = _stride(rows * len(exact), width)
    # Sums about a point near the mean: about zero, those of a channel that hardly varies would say nothing.
    first = next(rows_of(node, quantized[0])).mean(1, keepdim=True)
    sums = _Sums(first if centred else torch.zeros_like(first))
    phase = 0  # goes on from batch to batch: begun anew, some tokens would be met each time and others never
    for number, (x_batch, q_batch) in enumerate(zip(exact, quantized, strict=True)):
        own = importance[number] if importance is not None and importance.ndim > 1 else importance
        start = 0
        for x, q in zip(rows_of(node, x_batch), rows_of(node, q_batch), strict=True):
            counts = None if own is None else own[start : start + x.shape[1]][phase::stride]
            sums.add(x[:, phase::stride], q[:, phase::stride], counts)
            start += x.shape[1]
            phase = (phase - x.shape[1]) % stride
    found = sums.result()
    return found.centred() if centred else found


class _Sums:
    """What moments are the means of, about a point [G, 1, K]."""

    def __init__(self, about: Tensor) -> None:
        groups, _, width = about.shape
        self._about = about
        self._gram, self._cross = torch.zeros(2, groups, width, width)
        self._total_q, self._total_x = torch.zeros(2, groups, width)
        self._weight = self._squares = 0.0

    def add(self, x: Tensor, q: Tensor, counts: Tensor | None) -> None:
        """Add rows [G, R, K], perhaps none, that count as much [R], or one each."""
        x, q = x - self._about, q - self._about
        counts = torch.ones(q.shape[1]) if counts is None else counts
        counted = q * counts[:, None]
        turned = counted.transpose(1, 2)
        self._gram.baddbmm_(turned, q)
        self._cross.baddbmm_(turned, x)
        self._total_q += counted.sum(1)
        self._total_x += (x * counts[:, None]).sum(1)
        self._weight += float(counts.sum())
        self._squares += float(counts.square().sum())

    def result(self) -> Moments:
        """Return the means."""
        return Moments(
            self._gram / self._weight,
            self._cross / self._weight,
            self._total_q / self._weight,
            self._total_x / self._weight,
            self._weight**2 / self._squares,
        )


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


def _outputs_of(node: Node) -> int:
    shape = [int(d) for d in node.call.args[1].ty.shape]
    return shape[1] if node.kind == "linear" else shape[0]


def rows_of(node: Node, value: Tensor) -> Iterator[Tensor]:
    """Yield the rows [G, R, K] of a site's input: of a convolution, of as many images as fit at a time."""
    if node.kind == "linear":
        yield value.reshape(1, -1, value.shape[-1])
        return
    patch = inputs_of(node) * int(node.call.attrs.groups)
    for part in torch.split(value, max(1, UNFOLDED // (patch * prod(node.shape[2:])))):
        yield _patches(node, part)


def _stride(rows: int, width: int) -> int:
    """Return which of so many rows to take, in steps that meet all columns of images of this width."""
    step = ceil(rows / MOST_ROWS)
    while gcd(step, width) > 1:
        step += 1
    return step


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
