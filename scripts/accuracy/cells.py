"""The cells of the accuracy table: who quantizes, how precisely, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

W8A8, W6A6, W4A8, W4A4 = PRECISIONS = ("W8A8", "W6A6", "W4A8", "W4A4")
NNCF, ORT = "NNCF (OpenVINO)", "ONNX Runtime"
TVMQ, FAST, BEST, FIXED_POINT = "tvmq", "tvmq, fast", "tvmq, best", "tvmq, fixed_point"


@dataclass(frozen=True)
class Cell:
    """One measurement. Where a column has several cells of one precision, the best of them is shown."""

    column: str
    precision: str  # one of PRECISIONS; "" for the float model
    setting: str  # what distinguishes it from the others of its column
    engine: str  # who runs it: "tvmq", "openvino" or "onnxruntime"
    options: Mapping[str, Any] = field(default_factory=dict)  # tvmq: of tvmq.compile; rivals: see rivals.py
    transformer: bool | None = None  # only for beds that are a transformer, or are not; None: for all

    def fits(self, transformer: bool) -> bool:
        """Tell whether such a bed has this cell."""
        return self.transformer in (None, transformer)


FLOAT = Cell("float", "", "float", "onnxruntime", {"method": "float"})

# One line per setting: new precisions and presets of tvmq.compile are new lines.
OURS = (
    Cell(TVMQ, W8A8, "default", "tvmq", {"bits": 8}),
    Cell(TVMQ, W4A8, "default", "tvmq", {"bits": "w4a8"}),
    Cell(TVMQ, W4A4, "default", "tvmq", {"bits": "w4a4"}),
    Cell(FAST, W8A8, "fast", "tvmq", {"bits": 8, "preset": "fast"}),
    Cell(FIXED_POINT, W8A8, "default", "tvmq", {"bits": 8, "requantize": "fixed_point"}),
    Cell(TVMQ, W6A6, "default", "tvmq", {"bits": "w6a6"}),
    Cell(FAST, W4A8, "fast", "tvmq", {"bits": "w4a8", "preset": "fast"}),
    Cell(FIXED_POINT, W4A8, "default", "tvmq", {"bits": "w4a8", "requantize": "fixed_point"}),
    Cell(BEST, W4A8, "best", "tvmq", {"bits": "w4a8", "preset": "best"}),
    Cell(BEST, W4A4, "best", "tvmq", {"bits": "w4a4", "preset": "best"}),
)

# What the default does without one of its parts.
PARTS = {
    "steps": "activation steps from statistics alone",
    "importance": "all rows count alike",
    "compensate": "weights do not make up for their inputs' error",
}
ABLATIONS = tuple(
    Cell("ablation", precision, words, "tvmq", {"bits": precision.lower(), "without": part})
    for precision in (W8A8, W4A8)
    for part, words in PARTS.items()
)


def nncf(setting: str, transformer: bool, **options: Any) -> Cell:
    """Return NNCF's post-training quantization."""
    method = {"method": "quantize", "transformer": transformer}
    return Cell(NNCF, W8A8, setting, "openvino", method | options, transformer)


def nncf_weights(mode: str, group: int, **options: Any) -> Cell:
    """Return NNCF's compression of weights alone; group -1: one scale per channel."""
    setting = ", ".join(
        ["weights only", mode, f"groups of {group}" if group > 0 else "per channel", *options]
    )
    options = {"method": "weights", "mode": mode, "group": group, **options}
    return Cell(NNCF, W4A8, setting, "openvino", options, transformer=True)


def ort(calibrate: str, operators: str) -> Cell:
    """Return ONNX Runtime's static quantization: QDQ, u8 x s8, weights per channel, full range."""
    options = {"method": "static", "calibrate": calibrate, "operators": operators}
    return Cell(ORT, W8A8, f"{calibrate}, {operators}", "onnxruntime", options)


def ort_weights(group: int, symmetric: bool) -> Cell:
    """Return ONNX Runtime's 4-bit weights of matrix products."""
    kind = "symmetric" if symmetric else "asymmetric"
    options = {"method": "weights", "group": group, "symmetric": symmetric}
    setting = f"weights only, {kind}, groups of {group}"
    return Cell(ORT, W4A8, setting, "onnxruntime", options, transformer=True)


# Neither has fewer than 8 bits for activations, nor 4-bit weights of convolutions.
RIVALS = (
    nncf("default", True),
    nncf("without SmoothQuant", True, smooth=False),
    nncf("without SmoothQuant, accurate bias correction", True, smooth=False, fast=False),
    nncf("default", False),
    nncf("mixed preset", False, mixed=True),
    nncf("accurate bias correction", False, fast=False),
    nncf("mixed preset, accurate bias correction", False, mixed=True, fast=False),
    *(ort(*setting) for setting in product(("minmax", "percentile", "entropy"), ("all", "products"))),
    *(nncf_weights(*setting) for setting in product(("int4_sym", "int4_asym"), (-1, 64, 128))),
    nncf_weights("int4_asym", 64, scale_estimation=True),
    *(ort_weights(*setting) for setting in product((32, 128), (True, False))),
)


def cells_of(transformer: bool) -> list[Cell]:
    """Return all cells of a bed, the float one first."""
    return [cell for cell in (FLOAT, *OURS, *ABLATIONS, *RIVALS) if cell.fits(transformer)]
