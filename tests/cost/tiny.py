"""A block of a transformer without attention, and what costs are asked of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.cost.model_works import Subject
from tvmq.cost.table import open_store
from tvmq.costing import subject
from tvmq.passes.canonicalize import canonicalize
from tvmq.target import load_profile

ROWS, WIDTH = 17, 32
NATIVE = load_profile("native")


def module() -> tvm.IRModule:
    """Return norm, linear, gelu, linear, residual, norm, head at level canonical."""
    random = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, ROWS, WIDTH), "float32"))

    def weight(*shape: int) -> Any:
        return relax.const(0.1 * random.standard_normal(shape, np.float32))

    def linear(value: Any, name: str, outputs: int) -> Any:
        inputs = int(value.ty.shape[-1])
        product = builder.emit(op.matmul(value, weight(inputs, outputs)), name)
        return builder.emit(op.add(product, weight(outputs)), f"{name}.bias")

    def norm(value: Any, name: str) -> Any:
        ones, zeros = (relax.const(np.full(WIDTH, n, np.float32)) for n in (1, 0))
        return builder.emit(op.nn.layer_norm(value, ones, zeros, axes=[-1]), name)

    with builder.function("main", [x]):
        with builder.dataflow():
            hidden = builder.emit(op.nn.gelu(linear(norm(x, "norm1"), "fc1", 4 * WIDTH)), "act")
            total = builder.emit(op.add(linear(hidden, "fc2", WIDTH), x), "sum")
            out = builder.emit_output(linear(norm(total, "norm2"), "head", 16))
        builder.emit_func_output(out)
    return canonicalize(builder.get())


@cache
def asked() -> Subject:
    """Return the subject of that module, calibrated on noise."""
    random = np.random.default_rng(1)
    return subject(module(), [random.standard_normal((1, ROWS, WIDTH), np.float32) for _ in range(2)])


def store_in(folder: Path, *, measure: bool, threads: int = 1) -> Any:
    """Return a store of this machine in a file of folder."""
    return open_store(folder / "costs.jsonl", NATIVE, threads, measure=measure)
