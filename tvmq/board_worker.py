"""Does one request of board.py: reads it from standard input, writes the answer to standard output."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tvmq
from tvmq.cli_process import leave
from tvmq.device import Machine
from tvmq.environment import FFI_VERSION, TVM_VERSION, cpu_name, default_threads
from tvmq.errors import TvmqError, UsageError
from tvmq.machine import machine_features, this_machine
from tvmq.runtime import aligned, aligned_empty, load_library, load_runtime, use_threads
from tvmq.tune.turns import copies, settled, timed


def machine(_: dict[str, Any]) -> Any:
    """Tell what this machine is."""
    features = tuple(sorted(machine_features()))
    versions = TVM_VERSION, FFI_VERSION, tvmq.__version__
    return Machine(this_machine(), cpu_name(), features, default_threads(), *versions).to_json()


def verify(request: dict[str, Any]) -> Any:
    """Compare an artifact with its own checksums."""
    return tvmq.load(request["artifact"]).verify().to_json()


def bench(request: dict[str, Any]) -> Any:
    """Measure an artifact."""
    model = tvmq.load(request["artifact"])
    return model.benchmark(threads=request["threads"], repeat=request["repeat"]).to_json()


def time_kernels(request: dict[str, Any]) -> Any:
    """Time the function main of several libraries in turns, and tell a digest of what each writes."""
    use_threads(request["threads"])
    ffi = load_runtime()
    with np.load(request["operands"]) as stored:
        arguments = [aligned(stored[f"arr_{i}"]) for i in range(len(stored.files))]
    outputs = [aligned_empty(tuple(shape), dtype) for shape, dtype in request["outputs"]]
    results = [ffi.from_dlpack(output) for output in outputs]
    sets = [
        [ffi.from_dlpack(a) for a in each]
        for each in copies(arguments, request["constant"], request["evicting"])
    ]
    functions = [load_library(ffi, Path(name).read_bytes())["main"] for name in request["libraries"]]
    digests = []
    for function in functions:
        for output in outputs:
            output.view(np.uint8).fill(0x55)
        function(*sets[0], *results)
        digests.append(hashlib.sha256(b"".join(output.tobytes() for output in outputs)).hexdigest())
    times = timed(functions, sets, results, request["seconds"])
    return {"digests": digests, "least": [min(t) for t in times], "settled": [settled(t) for t in times]}


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


if __name__ == "__main__":
    print(json.dumps(done(json.load(sys.stdin))))
    leave(0)  # an ordinary end waits for TVM's pool, whose workers on a busy machine may miss their end
