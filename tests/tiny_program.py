"""A two-site program for the tests of what runs, saves and loads: y = x @ w + b in int32, and x again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tvmq.linker import require_linker
from tvmq.spec import (
    Built,
    Constant,
    Coverage,
    CoverageRow,
    Description,
    OutputSpec,
    Plan,
    Precision,
    Scale,
    SitePlan,
    SiteTrace,
    TensorSpec,
)
from tvmq.target import load_profile

ROWS, INPUTS, OUTPUTS = 4, 8, 16


@cache
def library() -> bytes:
    """Compile main and trace with TVM; some seconds, once per test run."""
    import tvm
    from tvm import relax
    from tvm.relax import op

    builder = relax.BlockBuilder()
    for name in ("main", "trace"):
        x = relax.Var("x", relax.TensorType((ROWS, INPUTS), "uint8"))
        w = relax.Var("w", relax.TensorType((INPUTS, OUTPUTS), "int8"))
        b = relax.Var("b", relax.TensorType((OUTPUTS,), "int32"))
        with builder.function(name, [x, w, b], attrs={"num_input": 1}):
            with builder.dataflow():
                product = builder.emit(op.matmul(x, w, out_dtype="int32"))
                y = builder.emit(op.add(product, b))
                # The second output of main is the input, passed through as a view.
                results = [y, op.reshape(x, (ROWS * INPUTS,))] if name == "main" else [product, y]
                out = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(out)
    mod = relax.transform.BundleModelParams()(builder.get())
    executable = tvm.compile(mod, tvm.target.Target({"kind": "llvm"}))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        executable.export_library(str(path), fcompile=require_linker())
        return path.read_bytes()


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Return w [8, 16] and b [16]."""
    random = np.random.default_rng(1)
    w = random.integers(-127, 128, (INPUTS, OUTPUTS), np.int8)
    return w, np.arange(OUTPUTS, dtype=np.int32)


def an_input(seed: int = 2) -> np.ndarray:
    """Return x [4, 8]."""
    return np.random.default_rng(seed).integers(0, 256, (ROWS, INPUTS), np.uint8)


def expected(x: np.ndarray) -> np.ndarray:
    """Return y [4, 16]."""
    w, b = weights()
    return x.astype(np.int32) @ w.astype(np.int32) + b


def built(code: bytes | None = None) -> Built:
    """Return the program; code replaces the library, for tests that never run it."""
    w, b = weights()
    return Built(
        library=library() if code is None else code,
        constants=(Constant("fc.weight", w, "plain", w.shape), Constant("fc.bias", b, "plain", b.shape)),
        inputs=(TensorSpec("x", (ROWS, INPUTS), "uint8"),),
        outputs=(
            OutputSpec("y", (ROWS, OUTPUTS), "int32"),
            OutputSpec("x_again", (ROWS * INPUTS,), "uint8"),
        ),
        sites=(
            SiteTrace("fc", "linear", (ROWS, OUTPUTS), "int32"),
            SiteTrace("fc.bias", "add", (ROWS, OUTPUTS), "int32"),
        ),
        graph='{"a": "graph"}',
    )


def description(features: tuple[str, ...] = ()) -> Description:
    """Return a description with something in every field."""
    return Description(
        target="x86_baseline",
        profile=load_profile("x86_baseline").to_toml(),
        triple="x86_64-linux-gnu",
        features=features,
        coverage=Coverage((CoverageRow("fc", "linear", True, "planned", 512),)),
        plan=Plan("17", (SitePlan("fc", "linear", Precision(8, 8), "planned"),)),
        scales=(Scale("fc", "weight", "int8", 0, 0.01, 0.5),),
        recipe={"bits": {"default": 8}, "ignored": ["head"], "seed": 0},
        calibration_hash=None,
    )
