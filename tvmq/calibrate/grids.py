"""Quantizers of one tensor: what integers they have, and the scale and zero point of a range.

Affine unsigned: q in [0, 2**bits - 1], real = scale * (q - zero_point), and 0.0 is exactly q = zero_point.
Symmetric signed: q in [-(2**(bits-1) - 1), 2**(bits-1) - 1] and zero_point = 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]

SMALLEST_SCALE = 2.0**-126  # the smallest normal float32


def integer_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the least and the greatest quantized value."""
    largest = 2 ** (bits - 1) - 1
    return (-largest, largest) if symmetric else (0, 2**bits - 1)


def steps_of(bits: int, symmetric: bool) -> int:
    """Return how many steps lie between the least and the greatest quantized value."""
    qmin, qmax = integer_range(bits, symmetric)
    return qmax - qmin


def affine_parameters(ranges: FloatArray, bits: int, symmetric: bool) -> tuple[FloatArray, FloatArray]:
    """Return (scale [...], whole zero_point [...]) of ranges [..., 2] that contain zero.

    The error of rounding is at most scale / 2 over the whole range, though moving zero_point to a whole
    number moves the ends of the grid by up to that. An empty range has scale 1.
    """
    low, high = ranges[..., 0], ranges[..., 1]
    qmin, qmax = integer_range(bits, symmetric)
    scale = np.maximum((high - low) / (qmax - qmin), SMALLEST_SCALE)
    scale = np.where(high > low, scale, 1.0)
    return scale, np.zeros_like(scale) if symmetric else np.clip(np.floor(0.5 - low / scale), qmin, qmax)


def fake_quantized(
    x: torch.Tensor, scale: float | torch.Tensor, zero_point: int, bits: int, symmetric: bool
) -> torch.Tensor:
    """Return what x becomes once stored; scale: one, or one per column [N]. Ties are rounded up."""
    qmin, qmax = integer_range(bits, symmetric)
    return torch.floor(x / scale + 0.5).clamp_(qmin - zero_point, qmax - zero_point) * scale


def range_with_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Return the smallest range around [low, high] and zero, low == -high when symmetric; (0, 0) for none."""
    if low > high:  # nothing was seen
        return 0.0, 0.0
    if symmetric:
        return -max(-low, high), max(-low, high)
    return min(low, 0.0), max(high, 0.0)
