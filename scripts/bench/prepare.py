"""What the benchmark runs, made once and kept in out/bench: environments, exported models, quantized models.

A part is made again when what it is made from changes: the models and the versions that export them, the
rivals' versions and settings, tvmq's own source. Older parts of the same name are deleted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parts import RIVALS, ROOT, TESTED, key, part, python_with, rivals_python, run

from tvmq.environment import cpu_name

HERE = Path(__file__).parent
PEAK_RUNS = 3
EXPORTERS = ("torch", "timm", "transformers", "onnx")


@dataclass(frozen=True)
class Engine:
    """One column of the table."""

    title: str
    runtime: str  # the name that worker.py knows
    suffix: str  # of the model's file
    integer: bool


ENGINES = {
    "tvmq": Engine("tvmq", "tvmq", ".tvmq", True),
    "openvino-int8": Engine("OpenVINO int8", "openvino", ".xml", True),
    "onnxruntime-int8": Engine("ONNX Runtime int8", "onnxruntime", ".onnx", True),
    "openvino": Engine("OpenVINO float", "openvino", ".xml", False),
    "onnxruntime": Engine("ONNX Runtime float", "onnxruntime", ".onnx", False),
}


@dataclass(frozen=True)
class Store:
    """Where the parts are, and the Python that runs each engine."""

    folder: Path
    smoke: bool  # then the rivals that this environment has are used, and no other environment is made

    def python(self, engine: str) -> Path:
        """Return the interpreter whose environment has this engine and as little else as possible."""
        if self.smoke:
            return Path(sys.executable)
        if engine == "tvmq":
            packages = ["-c", TESTED, "-e", ROOT]
            return python_with(self.folder / "runtime", packages, [TESTED, ROOT / "pyproject.toml"])
        return rivals_python()

    def source(self, model: str) -> Path:
        """Return the folder with model.onnx, input.npz, calibration.npz and about.json."""
        versions = [f"{name} {version(name)}" for name in EXPORTERS]
        made = key([HERE / "models.py"], versions)
        command = [sys.executable, HERE / "models.py", model]
        return part(self.folder / model, "source", made, lambda folder: run(command, [folder]))

    def model(self, engine: str, model: str) -> Path:
        """Return the file that an engine runs."""
        source = self.source(model)
        if engine == "onnxruntime":
            return source / "model.onnx"
        name = f"{engine}{ENGINES[engine].suffix}"
        if engine == "tvmq":
            made = key(
                sorted([*ROOT.glob("tvmq/**/*.py"), *ROOT.glob("target_profiles/*.toml")]), [source.name]
            )
            command: list[Any] = [sys.executable, "-m", "tvmq", "compile", source / "model.onnx", "--json"]
            # Weights are random: accuracy is not at stake here, and presets have the same kernels.
            command += ["--preset", "fast", "--calibration", source / "calibration.npz", "--output"]
        else:
            made = key([HERE / "quantize.py", RIVALS], [source.name])
            command = [self.python(engine), HERE / "quantize.py", engine, source]
        return part(self.folder / model, engine, made, lambda folder: run(command, [folder / name])) / name


def nbytes(path: Path) -> int:
    """Return the size of a model: of the file and, for OpenVINO, of its weights."""
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists())


@dataclass(frozen=True)
class Peak:
    """The most multiply-accumulates, in 10**9 a second, that one core can do with these instructions."""

    instructions: str
    gmacs: float


@cache
def peaks() -> dict[str, Peak]:
    """Return the peaks "int8" and "fp32" of this machine, the best ever seen: other work only lowers them."""
    if not shutil.which("gcc"):
        raise SystemExit(
            "bench: gcc is missing, which compiles the program that measures the peak; install it"
        )
    program = ROOT / "out" / "bench" / "peak"
    program.parent.mkdir(parents=True, exist_ok=True)
    run(["gcc", "-O2", "-o", program, HERE / "peak.c"])
    seen = program.with_name(f"peak.{key([HERE / 'peak.c'], [cpu_name()])}.json")
    runs = [json.loads(seen.read_text(encoding="utf-8"))] if seen.is_file() else []
    for _ in range(PEAK_RUNS):
        said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(said))
    best = {
        kind: max((each[kind] for each in runs), key=lambda peak: float(peak["gmacs"])) for kind in runs[0]
    }
    seen.write_text(json.dumps(best), encoding="utf-8")
    return {kind: Peak(**numbers) for kind, numbers in best.items()}
