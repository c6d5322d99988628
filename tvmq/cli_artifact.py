"""The commands that work on an artifact: run, bench, verify, inspect."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

import tvmq
from tvmq import report
from tvmq.artifact import read_manifest
from tvmq.cli_output import show
from tvmq.errors import UsageError, VerificationError
from tvmq.gpu import is_gpu_feature
from tvmq.images import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    IMAGENET,
    Batch,
    Preprocessing,
    by_input,
    load_arrays,
    load_image,
    preprocessing_from_text,
    save_outputs,
)
from tvmq.manifest import ConstantEntry, Manifest, nbytes
from tvmq.new_file import require_place
from tvmq.spec import Array

if TYPE_CHECKING:
    from tvmq.compiled import CompiledModel

TOP = 5
CLASSES = range(2, 100_000)  # widths of an output that is read as scores of classes


def run(
    path: Path,
    input_file: Path,
    output: Path | None,
    threads: int | None,
    scaling: tuple[str, str],
    *,
    as_json: bool,
) -> int:
    """Run the model once; write or summarise its outputs."""
    if output is not None:
        require_place(output)
    model = tvmq.load(path, threads=threads)
    inputs = read_inputs(input_file, model, scaling)
    began = time.perf_counter()
    answer = model(*inputs)
    spent_ms = 1e3 * (time.perf_counter() - began)
    arrays = answer if isinstance(answer, tuple) else (answer,)
    outputs = {spec.name: array for spec, array in zip(model.outputs, arrays, strict=True)}
    if output is not None:
        save_outputs(output, outputs)
    rows = [_described(name, array) for name, array in outputs.items()]
    columns = list(rows[0])
    data = {"ms": spent_ms, "written": str(output) if output else None, "outputs": rows}
    table = report.comparison("Outputs", columns, [[_cell(row[c]) for c in columns] for row in rows])
    where = f", written to {output}" if output else ""
    show(data, table, f"First answer after {spent_ms:.1f} ms{where}.", as_json=as_json)
    return 0


def bench(
    path: Path, threads: int | None, repeat: int, device: str | None, *, profile: bool, as_json: bool
) -> int:
    """Measure, here or on a board."""
    if device:
        from tvmq.breakdown import Benchmark

        found = on_device(device, path, {"do": "bench", "threads": threads, "repeat": repeat})
        result = Benchmark.from_json(found, "the board's answer")
    else:
        result = tvmq.load(path).benchmark(threads=threads, repeat=repeat)
    shown: list[RenderableType] = [
        report.benchmark(result),
        *([result.disturbed] if result.disturbed else []),
    ]
    if profile:
        shown.append(report.breakdown(result.breakdown))
    show(result.to_json(), *shown, as_json=as_json)
    return 0


def verify(
    path: Path, input_file: Path | None, scaling: tuple[str, str], device: str | None, *, as_json: bool
) -> int:
    """Compare bit for bit, here or on a board; the exit code tells the verdict."""
    if device:
        from tvmq.verification import Verification

        if input_file:
            raise UsageError("verify: --input stays here, a device verifies its golden input; drop one")
        result = Verification.from_json(on_device(device, path, {"do": "verify"}), "the board's answer")
    else:
        model = tvmq.load(path)
        inputs = read_inputs(input_file, model, scaling) if input_file else None
        result = model.verify(inputs)
    show({"ok": result.ok, **result.to_json()}, report.verification(result), as_json=as_json)
    try:
        result.require()
    except VerificationError as error:
        print(f"tvmq: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def inspect(path: Path, *, sites: bool, scales: bool, as_json: bool) -> int:
    """Tell what the artifact is; also one for another machine."""
    manifest = read_manifest(path)
    coverage = manifest.description.coverage
    data = {"bytes": path.stat().st_size, "coverage": coverage.as_json(), "manifest": manifest.to_json()}
    tables: list[RenderableType] = []
    if not sites and not scales:
        tables += [report.facts(str(path), _facts(path, manifest)), report.facts("Recipe", _recipe(manifest))]
    if scales:
        tables.append(report.scales(manifest.description.scales))
    if sites or not scales:
        stored = {w.site: f"int{w.weight_bits}, {report.size(w.stored_bytes)}" for w in weights(manifest)}
        tables.append(
            report.coverage_sites(coverage, manifest.description.plan, stored)
            if sites
            else report.coverage_summary(coverage)
        )
    show(data, *tables, as_json=as_json)
    return 0


def on_device(device: str, path: Path, request: dict[str, Any]) -> Any:
    """Return what a board answers about an artifact, which need not be for this machine."""
    from tvmq.device import Device

    board = Device.of(device)
    read_manifest(path)
    return board.ask_about(path.read_bytes(), request)


def read_inputs(path: Path, model: CompiledModel, scaling: tuple[str, str]) -> Batch:
    """Return one array per input from an .npy, an .npz or a photo."""
    suffix, specs = path.suffix.lower(), model.inputs
    if suffix in ARRAY_SUFFIXES:
        return by_input(load_arrays(path), specs, str(path))
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"{path}: neither a photo nor an .npy or .npz file; give one of these")
    spec = specs[0]
    if len(specs) != 1 or len(spec.shape) != 4 or spec.shape[1] not in (1, 3):
        takes = ", ".join(str(s) for s in specs)
        raise UsageError(f"{path}: a photo cannot feed a model that takes {takes}; give an .npy or .npz file")
    return (load_image(path, spec, photo_preprocessing(model, scaling))[None],)


def photo_preprocessing(model: CompiledModel, scaling: tuple[str, str]) -> Preprocessing:
    """Return how photos become inputs: as said, else as in calibration; say on stderr what may be wrong."""
    stored = model.preprocessing
    chosen = preprocessing_from_text(*scaling, default=stored or IMAGENET)
    if stored is None and not any(scaling):
        said = "the artifact was calibrated on arrays and does not say how photos are prepared; ImageNet's"
        print(f"tvmq: {said} mean and std are taken, --mean and --std are others", file=sys.stderr)
    elif stored is not None and chosen != stored:
        said = f"warning: photos are prepared with {chosen}, those of the calibration were with {stored}"
        print(f"tvmq: {said}", file=sys.stderr)
    return chosen


def weights(manifest: Manifest) -> list[ConstantEntry]:
    """Return the weights of products."""
    return [constant for constant in manifest.constants if constant.weight_bits]


def _weights(manifest: Manifest) -> str:
    """Return the bytes of the weights by their bits, and in memory where they take more there."""
    found: dict[int, int] = {}
    for weight in weights(manifest):
        found[weight.weight_bits] = found.get(weight.weight_bits, 0) + weight.stored_bytes
    listed = ", ".join(f"int{bits} {report.size(total)}" for bits, total in sorted(found.items()))
    held = sum(nbytes(weight.shape, weight.dtype) for weight in weights(manifest))
    more = f"; in memory {report.size(held)}" if held != sum(found.values()) else ""
    return f"{listed or 'none'}{more}"


def _facts(path: Path, manifest: Manifest) -> dict[str, Any]:
    description = manifest.description
    facts: dict[str, Any] = {
        "size": report.size(path.stat().st_size),
        "inputs": ", ".join(str(spec) for spec in manifest.inputs),
        "outputs": ", ".join(str(spec) for spec in manifest.outputs),
        "weights": _weights(manifest),
        "target": f"{description.target} ({description.triple})",
        "CPU features": " ".join(name for name in description.features if not is_gpu_feature(name)) or "none",
        **_of_gpu(description.features),
        "made with": f"tvmq {manifest.tvmq}, apache-tvm {manifest.tvm}, apache-tvm-ffi {manifest.tvm_ffi}",
        "calibration": f"sha256:{description.calibration_hash}" if description.calibration_hash else "none",
    }
    tuned = description.recipe.get("tuned", ())
    chosen = sum(kernel["decisions"] is not None for kernel in tuned)
    return facts | {"tuned kernels": f"{chosen} of {len(tuned)} not by default" if tuned else "none"}


def _of_gpu(features: Sequence[str]) -> dict[str, str]:
    needed = " ".join(filter(is_gpu_feature, features))
    return {"GPU": needed} if needed else {}


def _recipe(manifest: Manifest) -> dict[str, Any]:
    recipe = manifest.description.recipe
    return {name: _listed(value) for name, value in recipe.items() if name != "tuned"}


def _listed(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else value


def _described(name: str, array: Array) -> dict[str, Any]:
    low, mean, high = (float(f(array)) for f in (np.min, np.mean, np.max)) if array.size else (0.0, 0.0, 0.0)
    row: dict[str, Any] = {"output": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    row |= {"min": low, "mean": mean, "max": high}
    if array.ndim == 2 and len(array) == 1 and array.shape[1] in CLASSES:
        row["highest"] = [int(i) for i in np.argsort(-array[0], kind="stable")[:TOP]]
    return row


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
