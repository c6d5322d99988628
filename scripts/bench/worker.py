"""One engine in a process of its own: python worker.py ENGINE MODEL INPUT.npz THREADS ANSWER.npy

Says on standard output, one JSON line each: {} once the first answer is there, then for every line on
standard input what it asks for. {"seconds": s}: computes for s seconds, then for s more with the clock, at
least twice, and gives {"ms": [...]}. {"about": true}: gives peak memory, versions and settings. Needs NumPy
and the engine, no more.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peak_memory import peak_mb

Arrays = dict[str, "np.ndarray[Any, Any]"]
LEAST = 2  # timed runs of a turn


class Engine:
    """A loaded model: run() computes once; settings are those worth a note."""

    packages: tuple[str, ...] = ()
    settings: dict[str, str]
    run: Callable[[], Any]

    def __init__(self) -> None:
        self.settings = {}


class Tvmq(Engine):
    packages = ("tvmq", "apache-tvm")

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import tvmq

        loaded = tvmq.load(model, threads=threads)
        self.run = lambda: loaded(*inputs.values())


class OnnxRuntime(Engine):
    packages = ("onnxruntime",)

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.run = lambda: session.run(None, inputs)


class OpenVino(Engine):
    packages = ("openvino",)

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
        compiled = openvino.Core().compile_model(model, "CPU", options)
        request = compiled.create_infer_request()
        hint = compiled.get_property("INFERENCE_PRECISION_HINT")
        self.settings["precision hint"] = hint.to_string()
        self.run = lambda: list(request.infer(inputs, share_inputs=True, share_outputs=True).values())


ENGINES: dict[str, type[Any]] = {"tvmq": Tvmq, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def first(answer: Any) -> np.ndarray[Any, Any]:
    """Return the first output."""
    return np.asarray(answer[0] if isinstance(answer, list | tuple) else answer)


def turn(run: Callable[[], Any], seconds: float) -> list[float]:
    """Return the milliseconds of each run, after as many seconds of runs that are not counted.

    Those find the caches of another engine, and a core that slept: for some 50 ms it clocks lower.
    """
    _timed(run, seconds, 1)
    return _timed(run, seconds, LEAST)


def _timed(run: Callable[[], Any], seconds: float, least: int) -> list[float]:
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < least or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        spent.append(1e3 * (time.perf_counter() - began))
    return spent


def about(engine: Engine) -> dict[str, Any]:
    """Return peak memory so far, versions and settings."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in engine.packages}
    return {"peak_mb": peak_mb(), "versions": versions, "settings": engine.settings}


def main() -> None:
    """Load, answer once, then do what is asked."""
    name, model, inputs, threads, answer = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not get between the replies
    with np.load(inputs) as file:
        arrays = {key: file[key] for key in file.files}
    engine = ENGINES[name](model, arrays, int(threads))
    found = engine.run()
    print("{}", file=replies, flush=True)
    np.save(answer, first(found))
    for line in sys.stdin:
        asked = json.loads(line)
        reply = about(engine) if "about" in asked else {"ms": turn(engine.run, asked["seconds"])}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
