"""How long products take with each tile, beside the one that is chosen without measuring.

--prepare puts every kernel into one library, FOLDER/tiles.so; --run FOLDER --tiles times them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.record import Record

LIBRARY, LIST = "tiles.so", "tiles.json"
BATCHES = (1, 8, 64)
# Of DeiT-B and ResNet-50: rows of one sample, inputs, outputs, whether a table follows.
SHAPES = {
    "attention 768 x 768": (197, 768, 768, False),
    "MLP 768 x 3072": (197, 768, 3072, True),
    "MLP 3072 x 768": (197, 3072, 768, False),
    "1 x 1, 64 to 256": (56 * 56, 64, 256, False),
    "1 x 1, 1024 to 256": (14 * 14, 1024, 256, False),
    "1 x 1, 512 to 2048": (7 * 7, 512, 2048, False),
}
MORE_TILES = ((256, 128, 64, 64, 64, 3), (128, 256, 64, 64, 64, 3), (128, 128, 128, 64, 64, 3))
LAUNCHES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(Record):
    """One kernel of the library; sizes and dtypes are those of its parameters, in their order."""

    function: str
    shape: str
    batch: int
    tile: Mapping[str, int]
    chosen: bool
    macs: int
    sizes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


def prepare(
    folder: Path, target: str, shapes: Mapping[str, Any] = SHAPES, batches: Sequence[int] = BATCHES
) -> list[Kernel]:
    """Compile every shape with every tile that fits the GPU."""
    import tvm

    from tvmq.linker import require_linker
    from tvmq.schedule.cuda.toolkit import compiling
    from tvmq.target import load_profile

    profile = load_profile(target)
    functions, kernels = {}, []
    for title, shape in shapes.items():
        for batch in batches:
            for kernel, function in of_shape(title, shape, batch, profile):
                functions[kernel.function] = function.with_attr("global_symbol", kernel.function)
                kernels.append(kernel)
    device = profile.tvm()
    with tvm.transform.PassContext(opt_level=3), compiling(str(device.attrs["arch"])), device:
        built = tvm.compile(tvm.IRModule(functions), target=device)
    linker = require_linker(str(profile.tvm_target["mtriple"]))
    built.export_library(str(folder / LIBRARY), fcompile=linker)
    text = json.dumps([kernel.to_json() for kernel in kernels], indent=1)
    (folder / LIST).write_text(text + "\n", encoding="utf-8")
    return kernels


def of_shape(title: str, shape: Any, batch: int, profile: Any) -> list[tuple[Kernel, Any]]:
    """Return the kernels of one product, with their PrimFuncs."""
    from tvmq.schedule.cuda import product
    from tvmq.schedule.cuda.gpu import GpuModel
    from tvmq.schedule.linear_spec import LinearSpec

    gpu = GpuModel.of(profile)
    rows, inputs, outputs, table = shape
    linear = LinearSpec(rows=batch * rows, inputs=inputs, outputs=outputs, out_dtype="uint8", table=table)
    spec = product.ProductSpec(product=linear)
    chosen = product.default_tile(spec, gpu)
    tiles = [*product.DEFAULTS, *(product.TileDecision(*tile) for tile in MORE_TILES)]
    found = []
    fitting = (tile for tile in tiles if product.fits(tile, gpu, spec.weight_bits))
    for tile in dict.fromkeys([chosen, *fitting]):
        name = "_".join(map(str, ("p", *shape[:3], batch, *asdict(tile).values())))
        kernel = Kernel(
            function=name,
            shape=title,
            batch=batch,
            tile=asdict(tile),
            chosen=tile == chosen,
            macs=batch * rows * inputs * outputs,
            sizes=tuple(size for size, _ in product.buffers(spec).values()),
            dtypes=tuple(dtype for _, dtype in product.buffers(spec).values()),
        )
        found.append((kernel, product.product_prim_func(spec, tile)))
    return found


def measure(folder: Path, peak_gmacs: float | None) -> str:
    """Return a table of the chosen and the best tile of each product."""
    from tvmq.gpu_device import GpuClock, GpuMemory
    from tvmq.runtime import load_library, load_runtime

    text = (folder / LIST).read_text(encoding="utf-8")
    kernels = [Kernel.from_json(row, LIST) for row in json.loads(text)]
    ffi = load_runtime()
    memory = GpuMemory(ffi, 0)
    library, clock = load_library(ffi, (folder / LIBRARY).read_bytes()), GpuClock()
    times = {kernel.function: _us(kernel, library, memory, clock) for kernel in kernels}
    (folder / "tiles_us.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    lines = ["us, of the chosen tile and of the best | chosen | best | of peak, best | best tile"]
    for title, batch in dict.fromkeys((k.shape, k.batch) for k in kernels):
        same = [k for k in kernels if (k.shape, k.batch) == (title, batch)]
        [chosen], best = [k for k in same if k.chosen], min(same, key=lambda k: times[k.function])
        share = best.macs / times[best.function] / 10 / peak_gmacs if peak_gmacs else 0.0
        cells = (f"{times[chosen.function]:.1f}", f"{times[best.function]:.1f}", f"{share:.0f} %")
        lines.append(" | ".join((f"{title}, batch {batch}", *cells, str(list(best.tile.values())))))
    return "\n".join(lines)


def _us(kernel: Kernel, library: Any, memory: Any, clock: Any) -> float:
    """Return the time of a kernel on random operands, launched back to back."""
    random, tensors = np.random.default_rng(0), []
    for shape, dtype in zip(kernel.sizes, kernel.dtypes, strict=True):
        array = random.integers(0, 13, shape).astype(dtype)
        if dtype in ("int8", "uint8"):
            array = random.integers(0, 256, shape).astype("uint8").view(dtype)
        tensors.append(memory.put(array))
    function = library[kernel.function]

    def launch() -> None:
        for _ in range(LAUNCHES):
            function(*tensors)

    clock.seconds(launch)
    return min(clock.seconds(launch) for _ in range(3)) / LAUNCHES * 1e6
