"""Which CUDA kernel a composite gets; those without one are left to TVM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tvmq.passes import composites
from tvmq.passes.composites import attributes
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.epilogue import Epilogue
from tvmq.schedule.kernels import find
from tvmq.schedule.packing import unpack
from tvmq.target import load_profile

PLAIN = Epilogue(out_dtype="uint8", low=0, high=255)
ORIN = load_profile("jetson-orin")
GEOMETRY = ConvGeometry(
    batch=1, rows=8, columns=8, channels=32, outputs=32, kernel_rows=3, kernel_columns=3
)  # fmt: skip


def kernel_of(func: Any, profile: Any = ORIN) -> Any:
    shapes = [tuple(int(d) for d in p.ty.shape) for p in func.params]
    return find(attributes(func), shapes, profile, 1)


def conv(**fields: int) -> Any:
    return composites.conv2d("c", PLAIN, replace(GEOMETRY, **fields), in_dtype="uint8", pad_value=0)


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (composites.linear("a", PLAIN, rows=3, inputs=8, outputs=5, in_dtype="uint8"), "linear_3x8x5"),
        (composites.linear("a", PLAIN, rows=3, inputs=8, outputs=5, in_dtype="int8"), "linear_3x8x5"),
        (conv(), "conv2d_6x6x32x32"),
        (conv(groups=4), "conv2d_6x6x32x32"),
        (conv(kernel_rows=1, kernel_columns=1), "linear_64x32x32"),
        (conv(groups=32), "depthwise_6x6x32"),
    ],
)
def test_every_product_has_a_kernel_of_its_family(func: Any, name: str):
    kernel = kernel_of(func)
    assert kernel.name == name
    assert len(kernel.packing) == len(func.params)
    assert len(kernel.function().params) == len(func.params) + 1
    assert kernel.space.default in kernel.space


@pytest.mark.parametrize(
    ("target", "bits", "suffix"),
    [
        ("t4", 4, "_w4"),
        ("jetson-orin", 4, "_w4"),
        ("rtx", 4, "_w4"),
        ("t4", 3, ""),
        ("a100", 5, ""),
        ("h100", 4, ""),
        ("jetson-xavier", 4, ""),
        ("jetson-thor", 4, ""),
    ],
)
def test_weights_of_four_bits_stay_so_where_tensor_cores_take_them(target: str, bits: int, suffix: str):
    sizes = {"rows": 3, "inputs": 64, "outputs": 32, "in_dtype": "uint8", "weight_bits": bits}
    kernel = kernel_of(composites.linear("a", PLAIN, **sizes), load_profile(target))
    assert kernel.name == f"linear_3x64x32{suffix}"
    weight = np.full((64, 32), -128, "int8")
    packed = kernel.packing[1].pack(weight)
    assert packed.nbytes == (1024 if suffix else 2048)
    np.testing.assert_array_equal(unpack(packed, kernel.packing[1].layout, weight.shape), weight)
    window = composites.conv2d("c", PLAIN, GEOMETRY, in_dtype="uint8", pad_value=0, weight_bits=bits)
    assert kernel_of(window, load_profile(target)).name == f"conv2d_6x6x32x32{suffix}"


def test_what_has_no_kernel_is_left_alone():
    wide = composites.linear("a", PLAIN, rows=3, inputs=8, outputs=5, in_dtype="int16")
    assert kernel_of(wide) is None
    assert kernel_of(conv(groups=8)) is None  # 4 outputs of a group
