"""Random scales, residuals and tables of a product's epilogue, with what numerics makes of its sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmq import numerics
from tvmq.schedule.linear_spec import LinearSpec

Arrays = list[Any]


def rescaled(product: LinearSpec, sums: Any, bias: Any, random: Any) -> tuple[Arrays, Any]:
    """Return random scales of a product's channels, and int32 sums [rows, channels] with a bias rescaled."""
    acc = sums + bias
    outputs = product.outputs
    if product.out_dtype == "float32":
        factor = random.random(outputs, "float32")
        return [factor], acc.astype("float32") * factor
    if product.fixed_point:
        multiplier = random.integers(2**30, 2**31, outputs).astype("int32")
        shift = random.integers(34, 46, outputs, "int32")
        moved = numerics.round_shift_wide(acc * multiplier.astype("int64"), shift)
        return [multiplier, shift], moved + product.zero_point
    shift = random.integers(4, 12, outputs, "int32")
    if product.gain:
        # Of the largest sums, gains are 1: what a multiplication by more gives is not proved to fit.
        room = (2**31 - 1 - np.abs(bias.astype("int64"))) // np.maximum(np.abs(sums).max(0), 1)
        gain = np.minimum(random.integers(1, numerics.MOST_GAIN + 1, outputs), np.maximum(room, 1))
        return [gain.astype("int8"), shift.astype("int8")], sums * gain + bias >> shift
    return [shift], acc >> shift


def finished(product: LinearSpec, y: Any, random: Any) -> tuple[Arrays, Arrays]:
    """Return random residuals and tables, as the product has them, and its results for rescaled sums y."""
    rest: Arrays = []
    if product.out_dtype == "float32":
        return rest, [y]
    if product.residual:
        rest.append(random.integers(-(2**15), 2**15, y.shape).astype("int16"))
        rest[-1][::3, ::2], rest[-1][1::3, ::2] = 2**15 - 1, -(2**15)
        y = y + rest[-1]
    y = np.clip(y, *product.clip).astype(product.out_dtype)
    if product.table:
        rest.append(random.permutation(256).astype("uint8"))
        y = rest[-1][y]
    if product.copy is None:
        return rest, [y]
    shift, zero_point, *clip = product.copy
    return rest, [y, np.clip(numerics.requantize(y, shift, zero_point, "uint8"), *(clip or (0, 255)))]
