"""Products on GPUs, emulated: bit for bit what numerics says, for every epilogue, tile and architecture."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.schedule.cuda.cases import EPILOGUES, conv_spec, linear_spec, random_case
from tests.schedule.cuda.emulator import EmulatedKernels, needs_emulator
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.product import (
    DEFAULTS,
    ProductSpec,
    TileDecision,
    buffers,
    default_tile,
    fits,
    product_prim_func,
    product_space,
    speed_of,
    supports,
)

ARCHITECTURES = [(7, 2), (7, 5), (8, 0)]  # dot products, small and large tensor cores
LARGE = GpuModel((9, 0), 132, 4096)
SMALL = TileDecision(32, 64, 64, 16, 32, 2)


def check(cases: dict[str, tuple[ProductSpec, TileDecision]], capability: tuple[int, int]) -> None:
    """Run the kernels emulated; whatever lies beside arguments and results is neither read nor written."""
    funcs = {name: product_prim_func(spec, tile) for name, (spec, tile) in cases.items()}
    kernels = EmulatedKernels(funcs, capability)
    for name, (spec, _) in cases.items():
        arguments, expected = random_case(spec)
        shapes = [(a.shape, str(a.dtype)) for a in [*arguments, *expected]]
        assert shapes == list(buffers(spec).values())
        results = [np.full(values.shape, 77, values.dtype) for values in expected]
        found = kernels.run(name, [*arguments, *results])[-len(results) :]
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, wanted, err_msg=f"{name}: {spec}")


def test_layers_that_differ_in_constants_alone_are_tuned_as_one():
    spec = linear_spec(37, 96, 80, "copy")
    other = replace(spec, product=replace(spec.product, copy=(3, 9, 1, 200), low=-7, high=5))
    assert other != spec
    assert speed_of(other) == speed_of(spec)
    plain = replace(spec, product=replace(spec.product, copy=None))
    longer = replace(spec, product=replace(spec.product, inputs=128))
    assert len({speed_of(each) for each in (spec, plain, longer, replace(spec, signed=True))}) == 4


@needs_emulator
@pytest.mark.parametrize("capability", ARCHITECTURES, ids=str)
def test_linears_of_odd_sizes_equal_numerics_for_every_epilogue(capability: tuple[int, int]):
    sizes = [
        (37, 96, 80),
        (70, 147, 10),
        (1, 64, 1000),
        (33, 16, 40),
        (65, 192, 64),
        (5, 3, 7),
        (33, 200, 24),
        (34, 72, 90),
        (9, 48, 33),
    ]
    cases = {
        f"case{i}": (linear_spec(*size, epilogue, signed=i == 0), SMALL)
        for i, (size, epilogue) in enumerate(zip(sizes, EPILOGUES, strict=True))
    }
    check(cases, capability)


@needs_emulator
def test_every_default_tile_computes_the_same():
    spec, bands = linear_spec(150, 320, 136, "table"), linear_spec(330, 64, 136, "uint8")
    check({f"tile{i}": (spec, tile) for i, tile in enumerate(DEFAULTS)}, (8, 0))
    check({"bands": (bands, SMALL)}, (8, 0))  # a whole one and one of three tiles


@needs_emulator
@pytest.mark.parametrize("capability", ARCHITECTURES, ids=str)
def test_convolutions_equal_numerics(capability: tuple[int, int]):
    image = {"batch": 2, "rows": 9, "columns": 7}
    square = {"kernel_rows": 3, "kernel_columns": 3, "top": 1, "left": 1}
    strided = {"stride_rows": 2, "stride_columns": 2}
    geometries = [
        {"channels": 3, "outputs": 24, **square},
        {"channels": 16, "outputs": 40, **square, **strided, "bottom": 1, "right": 1},
        {"channels": 32, "outputs": 64, "kernel_rows": 1, "kernel_columns": 1, **strided},
        {"channels": 64, "outputs": 32, "kernel_rows": 3, "kernel_columns": 2, "groups": 4, "left": 2},
        {"channels": 48, "outputs": 72, "groups": 3, **square},  # a group ends amid 32 outputs
        {"channels": 8, "outputs": 8, "kernel_rows": 2, "kernel_columns": 2, "dilation_rows": 3, "top": 1},
    ]
    cases = {}
    ends = ["gain", "table", "trunk", "gain in the trunk", "fixed point", "float32"]
    for i, (fields, epilogue) in enumerate(zip(geometries, ends, strict=True)):
        spec = conv_spec(ConvGeometry(**image, **fields), epilogue)
        assert isinstance(spec, ProductSpec)
        cases[f"case{i}"] = (spec, SMALL)
    check(cases, capability)


@needs_emulator
def test_windows_of_few_channels_equal_numerics():
    """Eight bytes at a time, wherever they lie: across words, at both borders, dilated, of a group."""
    image, square = {"batch": 2, "rows": 9, "columns": 7}, {"kernel_rows": 7, "kernel_columns": 7}
    strided = {"stride_rows": 2, "stride_columns": 2}
    geometries = [
        {"channels": 3, "outputs": 16, **square, **strided, "top": 3, "left": 3, "bottom": 3, "right": 3},
        {"channels": 20, "outputs": 8, "kernel_rows": 2, "kernel_columns": 3, "left": 5, "right": 6},
        {"channels": 3, "outputs": 8, "kernel_rows": 4, "kernel_columns": 4, **strided},  # patches
        {"channels": 36, "outputs": 24, "groups": 3, **square, "dilation_columns": 2, "left": 7, "right": 8},
        {"channels": 15, "outputs": 24, "groups": 3, **square, "top": 1, "left": 2, "right": 7},
        {"channels": 1, "outputs": 8, "kernel_rows": 1, "kernel_columns": 1, "left": 1, "right": 1},
    ]
    cases = {}
    for i, (fields, epilogue) in enumerate(zip(geometries, EPILOGUES, strict=False)):
        spec = conv_spec(ConvGeometry(**image, **fields), epilogue)
        assert isinstance(spec, ProductSpec)
        cases[f"case{i}"] = (spec, SMALL)
    check(cases, (8, 0))


@needs_emulator
@pytest.mark.parametrize("capability", [(7, 5), (8, 0)], ids=str)
def test_weights_of_four_bits_equal_numerics(capability: tuple[int, int]):
    """Linears of odd sizes, signed and not; windows that lie together and that do not, of groups."""
    sizes = [(37, 96, 80), (70, 147, 10), (33, 16, 40), (65, 192, 64), (5, 3, 7), (33, 200, 24)]
    ends = ["gain", "gain in the trunk", "uint8", "copy", "table", "float32"]
    cases = {
        f"linear{i}": (linear_spec(*size, epilogue, signed=i % 2 == 0, weight_bits=4), SMALL)
        for i, (size, epilogue) in enumerate(zip(sizes, ends, strict=True))
    }
    deep = replace(SMALL, columns=32, depth=128, warp_columns=32)
    cases["deep"] = (linear_spec(33, 320, 40, "table", signed=True, weight_bits=4), deep)
    image = {"batch": 2, "rows": 9, "columns": 7, "kernel_rows": 3, "kernel_columns": 3}
    geometries = [
        {"channels": 3, "outputs": 24, "top": 1, "left": 1},
        {"channels": 48, "outputs": 72, "groups": 3, "left": 2, "stride_rows": 2},
        {"channels": 36, "outputs": 24, "groups": 3, "dilation_columns": 2, "left": 7, "right": 8},
    ]
    for i, (fields, epilogue) in enumerate(zip(geometries, ends, strict=False)):
        spec = conv_spec(ConvGeometry(**image, **fields), epilogue, weight_bits=4)
        assert isinstance(spec, ProductSpec)
        cases[f"conv{i}"] = (spec, SMALL)
    check(cases, capability)


def test_weights_of_four_bits_take_half_the_memory_and_twice_the_sums():
    gpu, wide = GpuModel((8, 7), 16, 2048), TileDecision(128, 128, 64, 64, 64, 3)
    assert wide.shared_bytes(4) == wide.shared_bytes(8) * 3 // 4
    assert fits(wide, gpu, 8)
    assert not fits(wide, gpu, 4)
    narrow = linear_spec(197, 768, 3072, "table", weight_bits=4)
    tile = default_tile(narrow, gpu)
    assert fits(tile, gpu, 4)
    assert buffers(narrow)["weight"] == ((1, 3072, 384), "int8")


def test_groups_whose_outputs_a_thread_cannot_store_together_have_no_kernel():
    fields = {"channels": 8, "outputs": 8, "kernel_rows": 1, "kernel_columns": 1, "groups": 2}
    spec = conv_spec(ConvGeometry(batch=1, rows=4, columns=4, **fields), "uint8")
    assert isinstance(spec, ProductSpec)
    assert supports(spec) is not None
    assert supports(linear_spec(4, 4, 3, "uint8")) is None


@pytest.mark.parametrize(
    "gpu", [LARGE, GpuModel((7, 5), 40, 1024), GpuModel((7, 2), 8, 256), GpuModel((8, 7), 16, 2048)]
)
@pytest.mark.parametrize("rows", [1, 197, 197 * 64])
def test_the_default_tile_fits_and_large_products_get_large_tiles(gpu: GpuModel, rows: int):
    spec = linear_spec(rows, 768, 3072, "table")
    tile = default_tile(spec, gpu)
    assert fits(tile, gpu, 8)
    assert asdict(tile) in product_space(spec, gpu)
    if rows == 1:
        assert tile.rows <= 32
    if rows > 10000:
        assert tile.rows * tile.columns >= 128 * 64
