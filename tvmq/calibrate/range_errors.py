"""What quantizing a tensor costs, from its histogram alone: the loss that a range is searched by."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tvmq.calibrate.grids import FloatArray, integer_range
from tvmq.calibrate.histogram import Histogram

# Of the quantized distribution, spread over all bins that the original occupies: where only clipped values
# lie, the divergence would be infinite.
SMOOTHING = 1e-4


def expected_error(
    histogram: Histogram,
    scale: FloatArray,
    zero_point: FloatArray,
    bits: int,
    symmetric: bool,
    *,
    p: float = 2.0,
) -> FloatArray:
    """Return the mean of |error|**p of quantizing, per quantizer [C], values being uniform within each bin.

    With u = x / scale and n the whole number that u is rounded to, held within the grid, the integral of
    |u - n|**p from 0 to u is (n / 2**p + sign(u - n) |u - n|**(p + 1)) / (p + 1): exact for rounding and for
    clipping alike. p = 2 is the mean squared error, larger p dread clipping more (LAPQ, Nahshan et al. 2019,
    section 4).
    """
    edges, counts = histogram.occupied()
    qmin, qmax = integer_range(bits, symmetric)
    zero = zero_point[:, None]
    u = edges[None, :] / scale[:, None]
    n = np.clip(np.rint(u), qmin - zero, qmax - zero)
    u -= n
    integral = u * u * u if p == 2 else np.copysign(np.abs(u) ** (p + 1), u)
    integral *= 1 / (p + 1)
    integral += n * (0.5**p / (p + 1))
    # No product of NumPy's: BLAS splits these over threads, and the sum would depend on how many there are.
    mean_u = np.einsum("ij,j->i", np.diff(integral, axis=1), counts / counts.sum())
    return np.asarray(mean_u * scale ** (p + 1) / histogram.width)


def divergence(
    histogram: Histogram, scale: FloatArray, zero_point: FloatArray, bits: int, symmetric: bool
) -> FloatArray:
    """Return the Kullback-Leibler divergence [C] of the quantized from the clipped distribution, in nats.

    Migacz, 8-bit inference with TensorRT, GTC 2017: in the original, values beyond the grid count in its
    outermost bins; in the quantized one they are missing, and all bins that are stored as one integer share
    their counts evenly, save those that are empty. A grid here may lie anywhere about zero. inf for a grid
    that holds no value, or is finer than the bins: how it rounds cannot be seen.
    """
    edges, counts = histogram.occupied()
    centres = (edges[:-1] + edges[1:]) / 2
    kept = without_spike(counts, edges)
    qmin, qmax = integer_range(bits, symmetric)
    if not kept.any():  # all are zero, which every grid holds
        return np.zeros(len(scale))
    return np.array(
        [
            _divergence(kept, centres / step, (qmin - zero, qmax - zero), histogram.width / step)
            if step >= histogram.width
            else math.inf
            for step, zero in zip(scale, zero_point, strict=True)
        ]
    )


def without_spike(counts: npt.NDArray[np.int64], edges: FloatArray) -> FloatArray:
    """Return counts with zero's bin no fuller than its neighbours.

    Every grid holds zero exactly. Left in, the zeros that a ReLU makes would seem to be spread over all of
    zero's step, and narrow grids would look best.
    """
    kept = counts.astype(np.float64)
    for zero in np.flatnonzero(edges[:-1] == 0):
        left, right = kept[max(zero - 1, 0) : zero].sum(), kept[zero + 1 : zero + 2].sum()
        kept[zero] = min(kept[zero], max(left, right))
    return kept


def _divergence(counts: FloatArray, u: FloatArray, limits: tuple[float, float], width: float) -> float:
    """Return the divergence for bins about u [n] steps from zero, of this width in steps.

    The first and the last integer stand for half a step to either side; a bin beyond is not clipped yet, as
    the end of a range is where a bin begins.
    """
    first = np.searchsorted(u, limits[0] - 0.5 - width)
    end = np.searchsorted(u, limits[1] + 0.5 + width)
    inside, level = counts[first:end], np.clip(np.rint(u[first:end]), *limits)
    if not inside.any():
        return math.inf
    original = inside.copy()
    original[0] += counts[:first].sum()
    original[-1] += counts[end:].sum()
    starts = np.flatnonzero(np.diff(level, prepend=math.nan))
    share = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat((inside > 0) * 1.0, starts), 1)
    quantized = np.repeat(share, np.diff(starts, append=len(inside))) * (inside > 0)
    seen = original > 0
    p = original[seen] / original.sum()
    q = quantized[seen] / quantized.sum()
    q = (1 - SMOOTHING) * q + SMOOTHING / len(q)
    return float(p @ np.log(p / q))
