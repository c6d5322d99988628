"""Products of matrices and convolutions as tiles: what may be decided about them, and their PrimFuncs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from tvm import tirx

from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.launch import C_TYPES, Buffers, Call, Launch, device_prim_func, template
from tvmq.schedule.cuda.packing import DEPTH_BLOCK, OUTPUT_BLOCK, RUN_BLOCK, padded
from tvmq.schedule.linear_spec import TABLE_SIZE, LinearSpec
from tvmq.schedule.space import Decisions, Space

WARP, MOST_THREADS = 32, 512
MOST_SUMS = 128  # of a thread: with more, registers go to memory
BLOCK_SUMS = 1 << 15  # half of the registers that a block can have
OPERANDS = ("bias", "scale", "multiplier", "residual", "table", "out", "copy")
# What the default tile is chosen by, in cycles; modelled, not measured.
BYTES_PER_CYCLE, SHARED_BYTES_PER_CYCLE, LATENCY, START = 64, 128, 500, 1500
OUTPUTS_TOGETHER = 8  # of a group, that a thread stores; see packing


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """One kernel: uint8 or int8 times int8 or the highest 4 bits of it, and what happens to the sums."""

    product: LinearSpec  # rows: of the result; inputs: that one output sees
    signed: bool = False
    weight_bits: int = 8  # in memory; 4: of two weights the highest four bits share a byte
    geometry: ConvGeometry | None = None  # of a convolution; None: a product of matrices
    pad_value: int = 0

    @property
    def groups(self) -> int:
        """Return how many products of their own channels there are."""
        return self.geometry.groups if self.geometry else 1

    @property
    def outputs(self) -> int:
        """Return the outputs of a group."""
        return self.product.outputs // self.groups

    @property
    def by_rows(self) -> bool:
        """Whether a row of a convolution's window lies together, not its taps alone."""
        g = self.geometry
        return g is not None and g.by_rows

    @property
    def run(self) -> int:
        """Return how many inputs of an output lie together."""
        return self.product.inputs * (self.geometry.kernel_columns if self.geometry and self.by_rows else 1)

    @property
    def depth(self) -> int:
        """Return what one output sums, with the padding of the weights."""
        taps = self.geometry.kernel_rows * self.geometry.kernel_columns if self.geometry else 1
        return padded(taps * self.product.inputs // self.run * padded(self.run, RUN_BLOCK), DEPTH_BLOCK)


def speed_of(spec: ProductSpec) -> ProductSpec:
    """Return spec without the constants that differ from layer to layer and take no time."""
    copy = None if spec.product.copy is None else (8, 0)
    product = replace(spec.product, zero_point=0, low=None, high=None, copy=copy)
    return replace(spec, product=product, pad_value=0)


@dataclass(frozen=True, slots=True)
class TileDecision:
    """A block computes rows x columns, its warps parts of it; depth bytes of both pass through each stage."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP

    def shared_bytes(self, weight_bits: int) -> int:
        """Return the shared memory of a block, without the table."""
        return self.stages * (self.rows * 8 + self.columns * weight_bits) * self.depth // 8


CHOICES: dict[str, tuple[int, ...]] = {
    "rows": (16, 32, 64, 128, 256),
    "columns": (32, 64, 128, 256),
    "depth": (64, 128),
    "warp_rows": (16, 32, 64),
    "warp_columns": (32, 64),
    "stages": (2, 3, 4, 5),
}
# The tiles that the default one is chosen from.
DEFAULTS = (
    TileDecision(128, 128, 64, 64, 64, 3),
    TileDecision(128, 64, 64, 64, 32, 4),
    TileDecision(64, 128, 64, 32, 64, 4),
    TileDecision(64, 64, 64, 32, 32, 4),
    TileDecision(64, 32, 128, 16, 32, 4),
    TileDecision(32, 64, 128, 16, 32, 4),
    TileDecision(32, 32, 128, 16, 32, 4),
    TileDecision(16, 32, 128, 16, 32, 4),
)


def supports(spec: ProductSpec) -> str | None:
    """Return why there is no kernel for spec, None when there is one."""
    if spec.groups > 1 and spec.outputs % OUTPUTS_TOGETHER:
        return f"{spec.outputs} outputs per group are not a multiple of {OUTPUTS_TOGETHER}"
    return None


def product_space(spec: ProductSpec, gpu: GpuModel) -> Space:
    """Return all tiles that the GPU has memory and threads for."""

    def valid(decisions: Decisions) -> bool:
        return fits(TileDecision(**decisions), gpu, spec.weight_bits)  # type: ignore[arg-type]

    return Space(CHOICES, asdict(default_tile(spec, gpu)), valid)


def fits(tile: TileDecision, gpu: GpuModel, weight_bits: int) -> bool:
    """Tell whether a block of the GPU can compute the tile."""
    whole = tile.rows % tile.warp_rows == 0 and tile.columns % tile.warp_columns == 0
    sums = tile.warp_rows * tile.warp_columns // WARP * (8 // weight_bits)
    memory = tile.shared_bytes(weight_bits) + TABLE_SIZE <= gpu.shared_bytes
    stages = tile.stages == 2 or gpu.async_copies  # without them more than two only take memory
    registers = sums <= MOST_SUMS and sums * tile.threads <= BLOCK_SUMS
    return whole and memory and stages and tile.threads <= MOST_THREADS and registers


def default_tile(spec: ProductSpec, gpu: GpuModel) -> TileDecision:
    """Return the tile that should take the least time."""
    stages = {} if gpu.async_copies else {"stages": 2}
    tiles = [TileDecision(**{**asdict(tile), **stages}) for tile in DEFAULTS]
    fitting = (tile for tile in tiles if fits(tile, gpu, spec.weight_bits))
    return min(fitting, key=lambda tile: cycles(spec, tile, gpu))


def cycles(spec: ProductSpec, tile: TileDecision, gpu: GpuModel) -> float:
    """Return about how many cycles the kernel takes: products or copies, or waiting where little is to do."""
    blocks = blocks_of(spec, tile)
    steps = ceil(spec.depth / tile.depth)
    warps = (tile.rows // tile.warp_rows) * (tile.columns // tile.warp_columns)
    products = tile.rows * tile.columns / gpu.macs_per_cycle
    byte = spec.weight_bits / 8  # of a weight
    copied = (tile.rows + tile.columns * byte) / BYTES_PER_CYCLE
    if gpu.tensor_cores:
        read = warps * (tile.warp_rows + tile.warp_columns * byte) / SHARED_BYTES_PER_CYCLE
    else:  # every lane reads the rows and columns of its own sums, 16 bytes in four cycles
        read = warps * (tile.warp_rows / 8 + tile.warp_columns / 4) / 4
    busy = spec.depth * (max(products, read) + copied / 4)
    return max(ceil(blocks / gpu.processors) * busy, steps * LATENCY / (tile.stages - 1)) + START


def blocks_of(spec: ProductSpec, tile: TileDecision) -> int:
    """Return how many tiles a kernel computes."""
    return ceil(spec.product.rows / tile.rows) * ceil(spec.outputs / tile.columns) * spec.groups


def product_prim_func(spec: ProductSpec, tile: TileDecision) -> tirx.PrimFunc:
    """Return the kernel, its parameters as buffers(spec) lists them."""
    product = spec.product
    parts = (tile.rows, tile.columns, tile.depth, tile.warp_rows, tile.warp_columns, tile.stages)
    kind = [template("Tile", *parts, spec.weight_bits), spec.signed]
    finish = epilogue(product)
    if spec.geometry is None:
        name = template("linear", *kind, product.rows, product.inputs, spec.outputs, spec.depth, finish)
    else:
        sizes = (product.rows, product.inputs, spec.outputs, spec.depth)
        name = template("conv2d", *kind, _windows(spec.geometry, spec.pad_value), *sizes, finish)
    kernel = buffers(spec)
    return device_prim_func(
        "conv2d" if spec.geometry else "linear",
        kernel,
        results(product),
        Launch(blocks_of(spec, tile), tile.threads, tile.shared_bytes(spec.weight_bits)),
        Call(name, ("x", "weight", "shared", operands(kernel))),
    )


def buffers(spec: ProductSpec) -> Buffers:
    """Return name -> (shape, dtype) of the kernel's parameters, in their order."""
    g, columns = spec.geometry, padded(spec.outputs, OUTPUT_BLOCK)
    shape = (g.batch * g.rows * g.columns, g.channels) if g else (spec.product.rows, spec.product.inputs)
    return {
        "x": (shape, "int8" if spec.signed else "uint8"),
        "weight": ((spec.groups, columns, spec.depth * spec.weight_bits // 8), "int8"),
        **epilogue_buffers(spec.product),
    }


def epilogue_buffers(product: LinearSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the parameters after the weight, results last."""
    channels, shape = (padded(product.outputs, OUTPUT_BLOCK),), (product.rows, product.outputs)
    numbers = "int8" if product.gain else "int32"
    scales = "float32" if product.out_dtype == "float32" else numbers
    optional = {
        "bias": (True, channels, "int32"),
        "multiplier": (product.rescaled, channels, numbers),
        "scale": (True, channels, scales),
        "residual": (product.residual, shape, "int16"),
        "table": (product.table, (TABLE_SIZE,), "uint8"),
        "out": (True, shape, product.out_dtype),
        "copy": (product.copy is not None, shape, "uint8"),
    }
    return {name: (size, dtype) for name, (there, size, dtype) in optional.items() if there}


def results(product: LinearSpec) -> tuple[str, ...]:
    """Return the names of the parameters that a kernel writes."""
    return ("out",) if product.copy is None else ("out", "copy")


def operands(kernel: Buffers) -> Call:
    """Return the call that gathers what the epilogue reads and writes."""
    return Call("tvmq::operands", [name if name in kernel else None for name in OPERANDS])


def epilogue(product: LinearSpec) -> str:
    """Return the type that finishes the sums."""
    low, high = (0, 0) if product.out_dtype == "float32" else product.clip
    shift, zero_point, *clip = product.copy or (0, 0)
    return template(
        "Epilogue",
        C_TYPES[product.out_dtype],
        product.outputs,
        low,
        high,
        product.residual,
        product.table,
        product.fixed_point,
        product.gain,
        product.zero_point,
        product.copy is not None,
        shift,
        zero_point,
        *(clip or INTEGER_RANGE["uint8"]),
    )


def _windows(g: ConvGeometry, pad_value: int) -> str:
    sizes: tuple[Any, ...] = (g.batch, g.rows, g.columns, g.channels, g.group_inputs)
    window = (g.kernel_rows, g.kernel_columns, g.stride_rows, g.stride_columns, g.top, g.left)
    steps = (g.dilation_rows, g.dilation_columns, g.out_rows, g.out_columns, pad_value)
    return template("Windows", *sizes, *window, *steps)
