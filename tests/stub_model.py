"""What stands for a compiled model in tests of the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tvmq.breakdown import Benchmark, Breakdown, Part
from tvmq.images import Preprocessing
from tvmq.spec import Coverage, CoverageRow, TensorSpec
from tvmq.tune.results import TunedKernel
from tvmq.verification import Verification

COVERAGE = Coverage((CoverageRow("fc", "linear", True, "w8a8", 10),))
TUNED = [
    TunedKernel("linear_5x8x20", "('a',)", 10, 20.0, 18.0, 9, {"row_tile": 5}).to_json(),
    TunedKernel("layer_norm_5x8", "('b',)", 1, None, None, 0, None).to_json(),
]


class StubModel:
    """Adds one to an image [1, 3, 8, 8] and averages its channels."""

    inputs = (TensorSpec("x", (1, 3, 8, 8), "float32"),)
    outputs = (TensorSpec("y", (1, 1, 8, 8), "float32"),)
    preprocessing: Preprocessing | None = None
    coverage = COVERAGE
    manifest = SimpleNamespace(description=SimpleNamespace(recipe={"tuned": TUNED}))
    search = None
    mismatches: tuple[str, ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.mean(1, keepdims=True) * 0 + np.float32(0.5)

    def save(self, path: Path) -> None:
        path.write_bytes(b"artifact")

    def benchmark(self, threads: int | None, repeat: int) -> Benchmark:
        parts = (Part("fc", "linear", 9.0, 0.9, 900, 0.1, 50.0),)
        return Benchmark(1.5, 1.4, 1.9, repeat, threads or 2, Breakdown(parts, 1.0, 0.2, "a datasheet"))

    def verify(self, x: Any = None) -> Verification:
        return Verification("reference" if x else "checksums", 3, 1, self.mismatches)
