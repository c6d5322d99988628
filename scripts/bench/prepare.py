"""What the benchmark runs, made once and kept in out/bench: environments, exported models, quantized models.

A part is made again when what it is made from changes: the models and the versions that export them, the
rivals' versions and settings, tvmq's own source. Older parts of the same name are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tvmq.environment import cpu_name

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTED, RIVALS = ROOT / "requirements" / "tested.txt", ROOT / "requirements" / "rivals.txt"
PEAK_RUNS = 3
EXPORTERS = ("torch", "timm", "transformers", "onnx")


class NotMeasuredError(Exception):
    """A part could not be made or run; the text is the reason in one line."""


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
            return self._environment("runtime", ["-c", TESTED, "-e", ROOT], [TESTED, ROOT / "pyproject.toml"])
        return self._environment("rivals", ["-c", TESTED, "-r", RIVALS], [TESTED, RIVALS])

    def source(self, model: str) -> Path:
        """Return the folder with model.onnx, input.npz, calibration.npz and about.json."""
        versions = [f"{name} {version(name)}" for name in EXPORTERS]
        made = key([HERE / "models.py"], versions)
        command = [sys.executable, HERE / "models.py", model]
        return self._part(model, "source", made, lambda folder: run(command, [folder]))

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
            command += ["--calibration", source / "calibration.npz", "--output"]
        else:
            made = key([HERE / "quantize.py", RIVALS], [source.name])
            command = [self.python(engine), HERE / "quantize.py", engine, source]
        return self._part(model, engine, made, lambda folder: run(command, [folder / name])) / name

    def _part(self, model: str, name: str, made: str, make: Callable[[Path], None]) -> Path:
        folder = self.folder / model / f"{name}.{made}"
        if not folder.is_dir():
            for old in folder.parent.glob(f"{name}.*"):
                shutil.rmtree(old)
            part = folder.with_name(f"{name}.part")
            part.mkdir(parents=True)
            make(part)
            part.rename(folder)
        return folder

    def _environment(self, name: str, packages: Sequence[Any], made_from: Iterable[Path]) -> Path:
        folder = self.folder / name
        stamp, made = folder / ".made", key(made_from, [sys.version])
        if not stamp.exists() or stamp.read_text() != made:
            venv.create(folder, clear=True, with_pip=True)
            run(
                [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"],
                packages,
            )
            stamp.write_text(made)
        return folder / "bin" / "python"


def key(files: Iterable[Path], words: Iterable[str] = ()) -> str:
    """Return a name for these files' contents and these words."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    digest.update("\n".join(words).encode())
    return digest.hexdigest()[:12]


def run(command: Sequence[Any], more: Sequence[Any] = ()) -> None:
    """Run a program; raise NotMeasuredError with its last words if it fails."""
    done = subprocess.run(
        [*map(str, command), *map(str, more)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
    )
    if done.returncode:
        raise NotMeasuredError(reason_in(done.stderr or done.stdout) or f"exit code {done.returncode}")


def reason_in(text: str) -> str:
    """Return the last line that names an error, or else says anything, cut to the length of a note."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("tvmq: ") or "Error: " in line]
    return (named or lines or [""])[-1][:300]


def environment() -> dict[str, str]:
    """Return this process's environment with tvmq to import, and without what sets an engine's threads.

    Python keeps compiled bytecode, as it does of packages that pip installed.
    """
    unwanted = ("OMP_", "TVM_", "PYTHONDONTWRITEBYTECODE")
    return {n: v for n, v in os.environ.items() if not n.startswith(unwanted)} | {"PYTHONPATH": str(ROOT)}


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
