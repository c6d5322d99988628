"""Rows of patches times matrices are the transposed convolution, as torch defines it, on integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op
from tvm.runtime import tensor

from tests.passes.lowered import lowered_value
from tvmq.formats import QuantParams
from tvmq.passes.lowering_values import Emitter, Expr, Stored
from tvmq.passes.patches import (
    MULTIPLE,
    interleave,
    supports_transposed,
    transposed_phases,
)

small = st.integers(1, 3)
ACCUMULATOR = QuantParams(1.0, 0, "int32")


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def product(emit: Emitter, rows: Expr, matrix: np.ndarray, zero_point: int) -> Expr:
    """Emit (rows - zero_point) @ matrix as the lowering does: the zero point folded into a bias."""
    assert matrix.shape[0] % MULTIPLE == 0
    bias = -zero_point * matrix.astype(np.int32).sum(0)
    acc = emit(op.matmul(rows, relax.const(tensor(matrix)), out_dtype="int32"))
    return emit(op.add(acc, relax.const(bias.astype(np.int32))))


@settings(max_examples=20, deadline=None)
@given(
    strides=st.tuples(small, small),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=st.tuples(small, small),
    size=st.tuples(small, small),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 2**16),
)
def test_conv2d_transpose(strides, padding, channels, size, zero_point, seed):
    kernel = tuple(s + 2 * p for s, p in zip(strides, padding, strict=True))
    x = values((2, channels[0], *size), "uint8", seed)
    w = values((*channels, *kernel), "int8", seed + 1)
    a, b = (relax.Var("a", relax.TensorType(s, "float32")) for s in (x.shape, w.shape))
    attrs = op.nn.conv2d_transpose(a, b, strides, padding).attrs
    assert supports_transposed(w.shape, attrs)

    def lower(emit: Emitter, stored: Stored) -> Expr:
        phase, steps, products = transposed_phases(emit, stored, w, attrs)
        parts = [product(emit, rows, matrix, zero_point) for rows, matrix in products]
        return emit.dense(interleave(emit, parts, phase, steps, ACCUMULATOR))

    found = lowered_value(x, QuantParams(1.0, zero_point, "uint8"), lower)
    real, weight = torch.tensor(x - np.float64(zero_point)), torch.tensor(w, dtype=torch.float64)
    expected = torch.nn.functional.conv_transpose2d(real, weight, stride=strides, padding=padding)
    assert found.to(torch.float64).equal(expected)


@pytest.mark.parametrize(
    ("kernel", "padding", "more"),
    [
        (3, 0, {}),  # phases of unequal size
        (4, (1, 1, 0, 0), {}),
        (4, 1, {"output_padding": 1}),
        (4, 1, {"groups": 3}),
        (4, 1, {"data_layout": "NHWC", "kernel_layout": "HWIO"}),
    ],
)
def test_other_transposed_convolutions_are_not_covered(kernel, padding, more):
    a, b = (relax.Var("a", relax.TensorType(s, "float32")) for s in ((1, 3, 8, 8), (3, 3, kernel, kernel)))
    attrs = op.nn.conv2d_transpose(a, b, 2, padding, **more).attrs
    assert not supports_transposed((3, 3, kernel, kernel), attrs)
