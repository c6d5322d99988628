"""Inputs of a product whose code is one number in all calibration data: a bias stands for what they give.

A LayerNorm with a gamma near zero makes such channels, and a probe fitted to standardized features gives them
weights of any size. So that these do not set the step of the others, they are clipped to the others' largest;
correcting the bias makes up for the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def one_code(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating], step: float) -> Mask:
    """Return which channels [C], of values from low to high, are one number in steps of this size.

    What is always exactly zero is none of them: behind a ReLU it may only have had nothing to say yet.
    """
    same = np.floor(low / step + 0.5) == np.floor(high / step + 0.5)
    return np.asarray(same & ((low != 0) | (high != 0)))


def calmed(weight: Floats, constant: Mask) -> Floats:
    """Return weight [K, N] with the rows of constant inputs clipped to the largest of the others."""
    if not constant.any() or constant.all():
        return weight
    largest = np.abs(weight[~constant]).max(0)
    return np.where(constant[:, None], np.clip(weight, -largest, largest), weight)
