"""Measure one cell in a process of its own: python child.py CACHE BED ENGINE OPTIONS THREADS FOLDER

OPTIONS are the cell's, as JSON. Writes into FOLDER scores.npy, the model's output for every test input in
order, and about.json: seconds and peak memory of the quantization, versions, and what stayed float. Needs
NumPy and the engine, no more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from beds import BATCH, Bed, load
from peak_memory import peak_mb

Arrays = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Quantized:
    """A model ready to run."""

    run: Callable[[Arrays], Any]  # gives the scores of a batch
    packages: tuple[str, ...]
    batch: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)


def tvmq_model(bed: Bed, options: Mapping[str, Any], threads: int, folder: Path) -> Callable[[], Quantized]:
    """Compile, and run the artifact."""
    import tvmq
    from tvmq.quantize.presets import DEFAULT, preset_of

    options = dict(options)
    if "without" in options:
        options["preset"] = replace(preset_of(DEFAULT), **{options.pop("without"): False})
    samples = list(bed.calibration.values())
    compiled = tvmq.compile(
        str(bed.model), calibration=[tuple(a[i : i + 1] for a in samples) for i in range(len(samples[0]))],
        **options,
    )  # fmt: skip

    def ready() -> Quantized:
        artifact = folder / "model.tvmq"
        compiled.save(artifact)
        loaded = tvmq.load(artifact, threads=threads)
        floats = [f"{r.site} ({r.kind}): {r.reason}" for r in loaded.coverage.rows if not r.integer]
        about = {"float_sites": floats, "integer_share": loaded.coverage.macs_integer_fraction}
        return Quantized(lambda batch: loaded(*batch.values()), ("tvmq", "apache-tvm"), about=about)

    return ready


def onnxruntime_model(
    bed: Bed, options: Mapping[str, Any], threads: int, folder: Path
) -> Callable[[], Quantized]:
    """Quantize unless float is wanted."""
    import onnxruntime

    output = folder / "model.onnx"
    in_float = options["method"] == "float"
    if not in_float:
        quantize("onnxruntime", bed, options, output)

    def ready() -> Quantized:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        path = bed.batch_model if in_float else output
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        batch = BATCH if in_float else 1
        return Quantized(lambda batch: session.run(None, batch)[0], ("onnxruntime",), batch)

    return ready


def openvino_model(
    bed: Bed, options: Mapping[str, Any], threads: int, folder: Path
) -> Callable[[], Quantized]:
    """Quantize; what stays float is computed in 32 bits, which is the most exact that OpenVINO can do."""
    output = folder / "model.xml"
    quantize("openvino", bed, options, output)

    def ready() -> Quantized:
        import openvino

        config = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = openvino.Core().compile_model(output, "CPU", config).create_infer_request()
        return Quantized(lambda batch: next(iter(request.infer(batch).values())), ("openvino", "nncf"))

    return ready


def quantize(engine: str, bed: Bed, options: Mapping[str, Any], output: Path) -> None:
    """Make a rival's model."""
    from rivals import QUANTIZERS

    arrays = bed.calibration
    count = len(next(iter(arrays.values())))
    samples = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]
    QUANTIZERS[engine, options["method"]](bed.model, samples, options, output)


ENGINES = {"tvmq": tvmq_model, "onnxruntime": onnxruntime_model, "openvino": openvino_model}


def scores(model: Quantized, bed: Bed) -> np.ndarray[Any, Any]:
    """Return the model's output for all test inputs, [N, classes]."""
    found = []
    for batch in bed.batches(model.batch):
        count = len(next(iter(batch.values())))
        full = {name: np.resize(array, (model.batch, *array.shape[1:])) for name, array in batch.items()}
        found.append(np.array(model.run(full))[:count])
    return np.concatenate(found)


def main() -> None:
    """Quantize, measure that, run the whole test set."""
    cache, name, engine, options, threads, folder = sys.argv[1:]
    bed, to = load(name, Path(cache)), Path(folder)
    began = time.perf_counter()
    ready = ENGINES[engine](bed, json.loads(options), int(threads), to)
    about: dict[str, Any] = {"seconds": time.perf_counter() - began, "peak_mb": peak_mb()}
    model = ready()
    np.save(to / "scores.npy", scores(model, bed))
    about |= {"versions": {name: version(name) for name in model.packages}, **model.about}
    (to / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
