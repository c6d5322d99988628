"""See scripts/runner.sh."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tvm_ffi
from root import PROJECT, wheels

from tvmq.errors import TvmqError, UsageError
from tvmq.linker import Linker, require_linker
from tvmq.target import load_profile

LIBRARIES = ("tvm_ffi/lib/libtvm_ffi.so", "tvm/lib/libtvm_runtime.so")
# The libraries beside the program; glibc's own are on every Linux, the C++ library of ziglang is inside.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-s",
    "-w",
    "-Wl,-rpath,$ORIGIN",
    "-Wl,--no-as-needed",
    "-ltvm_ffi",
    "-ltvm_runtime",
)


def cxx(triple: str) -> Linker:
    """Return the C++ compiler beside the linker for a triple: g++ beside gcc, `zig c++` beside `zig cc`."""
    names = {"cc": "c++"}
    words = [names.get(word, word) for word in require_linker(triple).command]
    return Linker(tuple(word[:-3] + "g++" if word.endswith("-gcc") else word for word in words))


def build(target: str, folder: Path) -> Path:
    """Write tvmq-run and its libraries to folder; return the program. Raises TvmqError."""
    profile = load_profile(target)
    if profile.capability is not None:
        raise UsageError(
            f"runner: {profile.name} computes on an NVIDIA GPU, and tvmq-run is for CPUs; "
            f"use Python there: `tvmq run`"
        )
    triple = str(profile.tvm_target["mtriple"])
    architecture = triple.split("-")[0]
    if architecture not in ("x86_64", "aarch64"):
        raise UsageError(
            f"runner: TVM has no runtime library for {architecture}; x86_64 and aarch64 have one"
        )
    compiler = cxx(triple)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        wheels(Path(place), architecture)
        for name in LIBRARIES:
            shutil.copy(Path(place) / name, folder)
    include = Path(tvm_ffi.__file__).parent / "include"
    program = folder / "tvmq-run"
    source = PROJECT / "runner" / "main.cpp"
    compiler.run(["-I", str(include), "-o", str(program), str(source), "-L", str(folder), *FLAGS])
    return program


def main(arguments: Sequence[str]) -> int:
    """Build for the target and into the folder named."""
    if len(arguments) != 2:
        print("usage: bash scripts/runner.sh TARGET FOLDER", file=sys.stderr)
        return 2
    try:
        print(build(arguments[0], Path(arguments[1])))
    except TvmqError as error:
        print(f"runner: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
