"""One engine in a process of its own: python worker.py ENGINE MODEL INPUT.npz THREADS ANSWER.npy

Says on standard output, one JSON line each: {} once the first answer is there, then for every line on
standard input what it asks for. {"seconds": s}: computes for s seconds, then for s more with the clock, at
least twice, and gives {"ms": [...]}. {"about": true}: gives peak memory, versions and settings. {"verify":
true}, for tvmq on a GPU: gives the verdict on its bits, and times of calls with inputs of the CPU's memory.
Needs NumPy and the engine, no more.
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
    answer: Callable[[], Any] | None = None  # gives the outputs where run does not

    def __init__(self) -> None:
        self.settings = {}

    def verified(self) -> dict[str, Any]:
        """Return what of the answer equals the reference."""
        raise NotImplementedError


class Tvmq(Engine):
    packages = ("tvmq", "apache-tvm")

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import tvmq

        loaded = tvmq.load(model, threads=threads)
        self.run = lambda: loaded(*inputs.values())


class TvmqGpu(Engine):
    """On a GPU: inputs and outputs stay in its memory."""

    packages = ("apache-tvm",)
    calls = 20

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import tvmq

        loaded = tvmq.load(model)
        arrays = list(inputs.values())
        self.loaded, self.answer = loaded, lambda: loaded(*arrays)
        self.run = loaded._program.resident(*arrays)
        self.settings["version"] = tvmq.__version__

    def verified(self) -> dict[str, Any]:
        assert self.answer
        verdict = self.loaded.verify()
        spent = []
        for _ in range(self.calls):
            began = time.perf_counter()
            self.answer()
            spent.append(time.perf_counter() - began)
        return {**verdict.to_json(), "call_s": spent}


class Torch(Engine):
    """A model of models.py on the GPU, by torch; compiled: by torch.compile, launched as one CUDA graph."""

    packages = ("torch", "timm")
    dtype, compiled = "float32", False

    def __init__(self, model: str, inputs: Arrays, threads: int) -> None:
        super().__init__()
        import torch
        from models import MODELS, SMOKE
        from torch_models import torch_module

        if not torch.cuda.is_available():
            raise RuntimeError("this torch sees no GPU")
        if model not in MODELS | SMOKE:
            raise RuntimeError("no torch module: the model is an ONNX file")
        torch.set_num_threads(threads)
        dtype = getattr(torch, self.dtype)
        module = torch_module((MODELS | SMOKE)[model]).to("cuda", dtype)
        tensors = [torch.from_numpy(array).cuda() for array in inputs.values()]
        given = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        found: dict[str, Any] = {}
        called = torch.compile(module) if self.compiled else module

        def compute() -> None:
            with torch.no_grad():
                found["answer"] = called(*given)

        for _ in range(3):
            compute()
        torch.cuda.synchronize()
        if self.compiled:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                compute()
            compute = graph.replay

        def run() -> None:
            compute()
            torch.cuda.synchronize()

        def answer() -> Any:
            run()
            return first(found["answer"]).float().cpu().numpy()

        self.run, self.answer = run, answer
        self.settings["float32 products"] = f"precision {torch.get_float32_matmul_precision()}"


class CompiledTorch(Torch):
    compiled = True


class HalfTorch(CompiledTorch):
    dtype = "float16"


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


ENGINES: dict[str, type[Any]] = {
    "tvmq": Tvmq,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tvmq-gpu": TvmqGpu,
    "torch-float32": Torch,
    "torch.compile-float32": CompiledTorch,
    "torch.compile-float16": HalfTorch,
}


def first(answer: Any) -> Any:
    """Return the first output."""
    return answer[0] if isinstance(answer, list | tuple) else answer


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
    found = (engine.answer or engine.run)()
    print("{}", file=replies, flush=True)
    np.save(answer, np.asarray(first(found)))
    for line in sys.stdin:
        asked = json.loads(line)
        if "verify" in asked:
            reply = engine.verified()
        else:
            reply = about(engine) if "about" in asked else {"ms": turn(engine.run, asked["seconds"])}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
