"""Depthwise convolutions and pools on GPUs, emulated, equal numerics bit for bit."""

from __future__ import annotations

import numpy as np

from tests.schedule.cuda.cases import conv_spec, random_case
from tests.schedule.cuda.emulator import EmulatedKernels, needs_emulator
from tvmq import numerics
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import Pooling
from tvmq.schedule.cuda.windows import depthwise_prim_func, pool_prim_func
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.pool import PoolSpec

IMAGE = {"batch": 2, "rows": 9, "columns": 7}
STRIDED = {"kernel_rows": 3, "kernel_columns": 3, "top": 1, "left": 1, "right": 1, "stride_rows": 2}


@needs_emulator
def test_depthwise_convolutions_equal_numerics():
    cases = {
        "strided": (16, STRIDED, "uint8"),
        "odd": (7, STRIDED, "trunk"),
        "wide": (20, {"kernel_rows": 1, "kernel_columns": 5, "dilation_columns": 2, "left": 4}, "table"),
        "copied": (12, {"kernel_rows": 2, "kernel_columns": 2}, "copy"),
        "fixed": (8, STRIDED, "fixed point"),
        "gained": (24, STRIDED, "gain"),
    }
    specs = {}
    for name, (channels, window, epilogue) in cases.items():
        fields = IMAGE | {"channels": channels, "outputs": channels, "groups": channels} | window
        specs[name] = conv_spec(ConvGeometry(**fields), epilogue)
    funcs = {}
    for name, spec in specs.items():
        assert isinstance(spec, DepthwiseSpec)
        funcs[name] = depthwise_prim_func(spec, False, 64)
    kernels = EmulatedKernels(funcs)
    for name, spec in specs.items():
        arguments, expected = random_case(spec)
        results = [np.full(values.shape, 77, values.dtype) for values in expected]
        found = kernels.run(name, [*arguments, *results])[-len(results) :]
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, wanted, err_msg=name)


@needs_emulator
def test_pools_equal_numerics():
    window, strides, padding = (3, 2), (2, 1), (1, 1, 0, 0)
    fields = IMAGE | {"channels": 5, "outputs": 5, "groups": 5, "kernel_rows": 3, "kernel_columns": 2}
    geometry = ConvGeometry(**fields, stride_rows=2, top=1, left=1)
    numbers = {"zero_point": 9, "multiplier": 1 << 30, "shift": 33, "out_zero_point": 4}
    largest = Pooling(operation="max", in_dtype="int16", out_dtype="int16")
    mean = Pooling(operation="mean", in_dtype="uint8", out_dtype="uint8", low=6, high=90, **numbers)
    kernels = EmulatedKernels(
        {
            "largest": pool_prim_func(PoolSpec(geometry, largest), 64),
            "mean": pool_prim_func(PoolSpec(geometry, mean), 128),
        }
    )
    random = np.random.default_rng(0)
    shape, images = (2 * 9 * 7, 5), (2, 9, 7, 5)
    x = random.integers(-(2**15), 2**15, shape).astype("int16")
    wanted = numerics.max_pool(x.reshape(images), window, strides, padding).reshape(-1, 5)
    np.testing.assert_array_equal(kernels.run("largest", [x, np.zeros_like(wanted)])[-1], wanted)
    x = random.integers(0, 256, shape).astype("uint8")
    wanted = numerics.mean_pool(x.reshape(images), window, strides, padding, dtype="uint8", **numbers)
    wanted = wanted.reshape(-1, 5).clip(6, 90)
    np.testing.assert_array_equal(kernels.run("mean", [x, np.zeros_like(wanted)])[-1], wanted)
