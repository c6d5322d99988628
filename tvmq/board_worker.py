"""Does one request of board.py: reads it from standard input, writes the answer to standard output."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tvmq
from tvmq.cli_process import leave
from tvmq.device import Machine
from tvmq.environment import FFI_VERSION, TVM_VERSION, cpu_name, default_threads
from tvmq.errors import DeviceError, TvmqError, UsageError
from tvmq.gpu import fitting, these_gpus
from tvmq.machine import machine_features, this_machine
from tvmq.own_process import LIMIT
from tvmq.runtime import aligned, aligned_empty, load_library, load_runtime, use_threads
from tvmq.tune.gpu_turns import GpuKernels
from tvmq.tune.turns import Times, copies, settled, timed

GRACE = 5  # seconds after a request's limit, at which whoever asked ends it


def machine(_: dict[str, Any]) -> Any:
    """Tell what this machine is."""
    features = tuple(sorted(machine_features()))
    versions = TVM_VERSION, FFI_VERSION, tvmq.__version__
    gpus = these_gpus().found
    return Machine(this_machine(), cpu_name(), features, default_threads(), gpus, *versions).to_json()


def verify(request: dict[str, Any]) -> Any:
    """Compare an artifact with its own checksums."""
    return tvmq.load(request["artifact"]).verify().to_json()


def bench(request: dict[str, Any]) -> Any:
    """Measure an artifact."""
    model = tvmq.load(request["artifact"])
    return model.benchmark(threads=request["threads"], repeat=request["repeat"]).to_json()


def time_kernels(request: dict[str, Any]) -> Any:
    """Time the function main of several libraries in turns, and tell a digest of what each writes.

    The first one is the default kernel.
    """
    with np.load(request["operands"]) as stored:
        arguments = [aligned(stored[f"arr_{i}"]) for i in range(len(stored.files))]
    timed_here = _timed_on_gpu if request.get("gpu") else _timed
    written, times = timed_here(request, arguments)
    digests = [hashlib.sha256(each).hexdigest() for each in written]
    return {"digests": digests, "least": [min(t) for t in times], "settled": [settled(t) for t in times]}


def _timed(request: dict[str, Any], arguments: list[Any]) -> tuple[list[bytes], Times]:
    use_threads(request["threads"])
    ffi = load_runtime()
    outputs = [aligned_empty(tuple(shape), dtype) for shape, dtype in request["outputs"]]
    results = [ffi.from_dlpack(output) for output in outputs]
    sets = [
        [ffi.from_dlpack(a) for a in each]
        for each in copies(arguments, request["constant"], request["evicting"])
    ]
    functions = _functions(ffi, request)
    written = []
    for function in functions:
        for output in outputs:
            output.view(np.uint8).fill(0x55)
        function(*sets[0], *results)
        written.append(b"".join(output.tobytes() for output in outputs))
    return written, timed(functions, sets, results, request["seconds"])


def _timed_on_gpu(request: dict[str, Any], arguments: list[Any]) -> tuple[list[bytes], Times]:
    number = fitting(request["gpu"], these_gpus().found)
    if number is None:
        raise DeviceError(f"tune: no GPU here has {', '.join(request['gpu'])}; see what `nvidia-smi` says")
    ffi = load_runtime()
    shapes = request["outputs"]
    kernels = GpuKernels(ffi, number, arguments, request["constant"], shapes, request["evicting"])
    functions = _functions(ffi, request)
    written = [kernels.default(functions[0]), *map(kernels.written, functions[1:])]
    return written, kernels.timed(functions, request["seconds"])


def _functions(ffi: Any, request: dict[str, Any]) -> list[Any]:
    return [load_library(ffi, Path(name).read_bytes())["main"] for name in request["libraries"]]


REQUESTS = {"machine": machine, "verify": verify, "bench": bench, "time": time_kernels}


def done(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request."""
    try:
        if request.get("do") not in REQUESTS:
            raise UsageError(
                f"board: {request.get('do')!r} is unknown to tvmq {tvmq.__version__}; install the same there"
            )
        return {"value": REQUESTS[request["do"]](request)}
    except TvmqError as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}


def main() -> None:
    """Answer, or end: whoever asked may be gone by the time a kernel turns out never to end."""
    given = json.load(sys.stdin)
    signal.alarm(math.ceil(float(given.get("limit", LIMIT))) + GRACE)
    print(json.dumps(done(given)))


if __name__ == "__main__":
    main()
    leave(0)  # an ordinary end waits for TVM's pool, whose workers on a busy machine may miss their end
