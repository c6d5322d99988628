"""Linears with weights of few bits against the same of 8: python scripts/bench/packed_weights.py.

Two questions. Is the multiplier kept as busy where it is what limits (the linears of DeiT-S and ViT-B, 198
rows)? And is it faster where the weights are read from memory (few rows, as many layers in turn as do not fit
the last cache level)? The shortest of many runs in turns counts, which neighbours on the machine hardly
change.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
from rich.console import Console

from tvmq import report
from tvmq.formats import PACKED_BITS
from tvmq.runtime import use_threads
from tvmq.schedule import kernels
from tvmq.target import load_profile

DEIT_S = [(198, 384, 1152), (198, 384, 384), (198, 384, 1536), (198, 1536, 384)]
VIT_B = [(198, 768, 2304), (198, 768, 768), (198, 768, 3072), (198, 3072, 768)]
MEMORY = [(rows, 4096, 4096) for rows in (1, 2, 4, 8, 16)]
BEYOND = 3  # times the last cache level that all layers' packed weights take
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

Shape = tuple[int, int, int]
Run = Callable[[], None]


def last_level_bytes() -> int:
    """Return the size of the largest cache, 32 MiB where the system does not tell."""
    sizes = [file.read_text().strip() for file in CACHES.glob("index*/size")]
    return max((int(size.removesuffix("K")) << 10 for size in sizes), default=32 << 20)


def layer(shape: Shape, bits: int, threads: int, copies: int) -> Run:
    """Return what runs the next of `copies` layers of a shape, each with weights of its own."""
    rows, inputs, outputs = shape
    attrs = {
        "kernel": "linear", "in_dtype": "uint8", "out_dtype": "uint8", "residual": False, "table": False,
        "fixed_point": False, "gain": bits < 8, "zero_point": 0, "low": 0, "high": 255, "weight_bits": bits,
    }  # fmt: skip
    profile = load_profile("native")
    numbers = [np.full(outputs, 12, np.int32)]
    if bits < 8:  # as the quantizer makes them
        numbers = [np.full(outputs, 13, np.int8), np.full(outputs, 15, np.int8)]
    sizes = [(rows, inputs), (inputs, outputs), *[(outputs,)] * (1 + len(numbers))]
    kernel = kernels.find(attrs, sizes, profile, threads)
    assert kernel is not None
    function = tvm.compile(tvm.IRModule({"main": kernel.function()}), target=profile.tvm())["main"]
    random = np.random.default_rng(0)
    x = tvm.runtime.tensor(random.integers(0, 256, (rows, inputs)).astype(np.uint8))
    weight = (random.integers(-128, 128, (inputs, outputs)) & (-1 << (8 - bits))).astype(np.int8)
    constants = [weight, np.zeros(outputs, np.int32), *numbers]
    packings = kernel.packing[1 : 1 + len(constants)]
    packed = [p.pack(c) if p else c for p, c in zip(packings, constants, strict=True)]
    weights = itertools.cycle([tvm.runtime.tensor(packed[0]) for _ in range(copies)])
    rest = [*map(tvm.runtime.tensor, packed[1:]), tvm.runtime.tensor(np.zeros((rows, outputs), np.uint8))]

    def run() -> None:
        function(x, next(weights), *rest)

    return run


def shortest(runs: Sequence[Run], seconds: float) -> list[float]:
    """Return the shortest time of each, seconds; they take turns until the time is over."""
    best = [float("inf")] * len(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - began)
    return best


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", default="4", help=f"comma-separated, of {list(PACKED_BITS)}; default: 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each shape")
    parser.add_argument("--only", choices=("compute", "memory"))
    given = parser.parse_args()
    bits = [8, *map(int, given.bits.split(","))]
    use_threads(given.threads)
    for name, shapes in (("compute", [*DEIT_S, *VIT_B]), ("memory", MEMORY)):
        if given.only in (None, name):
            rows = [_row(shape, bits, given, name == "memory") for shape in shapes]
            columns = ["rows x inputs x outputs", "layers", "int8 us", "GMAC/s", "GB/s"]
            columns += [f"int{b}, of int8's speed" for b in bits[1:]]
            Console().print(report.comparison(f"Bound by {name}, threads: {given.threads}", columns, rows))


def _row(shape: Shape, bits: list[int], given: argparse.Namespace, memory: bool) -> list[str]:
    rows, inputs, outputs = shape
    least = inputs * outputs * min(bits) // 8
    copies = -(-BEYOND * last_level_bytes() // least) if memory else 1
    runs = [layer(shape, each, given.threads, copies) for each in bits]
    whole, *others = shortest(runs, given.seconds)
    rate = f"{rows * inputs * outputs / whole / 1e9:.0f}"
    read = f"{inputs * outputs / whole / 1e9:.1f}"
    speeds = [f"{100 * whole / each:.1f} %" for each in others]
    return ["x".join(map(str, shape)), str(copies), f"{1e6 * whole:.1f}", rate, read, *speeds]


if __name__ == "__main__":
    main()
