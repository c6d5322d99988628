"""See scripts/runner.sh."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tvm_ffi
from root import PROJECT, wheels

from tvmq.environment import FFI_VERSION, TVM_VERSION
from tvmq.errors import EnvironmentMismatchError, TvmqError, UsageError
from tvmq.linker import GLIBC, HOST_COMPILERS, INSTALL_LINKER, Linker
from tvmq.target import load_profile

LIBRARIES = ("tvm_ffi/lib/libtvm_ffi.so", "tvm/lib/libtvm_runtime.so")
# The libraries beside the program; glibc's own are on every Linux, the C++ library is inside.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-s",
    "-w",
    f'-DTVMQ_TVM="{TVM_VERSION}"',
    f'-DTVMQ_TVM_FFI="{FFI_VERSION}"',
    "-Wl,-rpath,$ORIGIN",
    "-Wl,--no-as-needed",
    "-ltvm_ffi",
    "-ltvm_runtime",
)
INSIDE = ("-static-libstdc++", "-static-libgcc")  # the machine may have older ones; ziglang's always are


def compiler(architecture: str) -> Linker:
    """Return a C++ compiler for Linux on an architecture; raise EnvironmentMismatchError without one.

    For another machine ziglang comes first: what a cross g++ makes wants a C library as new as this one's.
    """
    here = architecture == platform.machine()
    system = f"{architecture}-linux-gnu"
    target = () if here else ("-target", f"{system}.{GLIBC}")
    zig = importlib.util.find_spec("ziglang") is not None
    names = HOST_COMPILERS if here else (f"{system}-g++",)
    found = next((path for path in map(shutil.which, names) if path), None)
    if zig and not (here and found):
        return Linker((sys.executable, "-m", "ziglang", "c++", *target))
    if found:
        return Linker((found, *INSIDE))
    raise EnvironmentMismatchError(
        f"runner: no C++ compiler for {system} found, {' or '.join(names)} or the PyPI package ziglang is "
        f"wanted; run `{INSTALL_LINKER}`"
    )


def build(target: str, folder: Path) -> Path:
    """Write tvmq-run and its libraries to folder; return the program. Raises TvmqError."""
    profile = load_profile(target)
    if profile.capability is not None:
        raise UsageError(
            f"runner: {profile.name} computes on an NVIDIA GPU, and tvmq-run is for CPUs; "
            f"use Python there: `tvmq run`"
        )
    architecture = str(profile.tvm_target["mtriple"]).split("-")[0]
    if architecture not in ("x86_64", "aarch64"):
        raise UsageError(
            f"runner: TVM has no runtime library for {architecture}; x86_64 and aarch64 have one"
        )
    compiler(architecture)  # what it lacks is said before anything is fetched
    with tempfile.TemporaryDirectory() as place:
        wheels(Path(place), architecture)
        return program(architecture, folder, Path(place))


def program(architecture: str, folder: Path, site: Path) -> Path:
    """Write tvmq-run to folder, beside the libraries of the packages in site; return it. Raises TvmqError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in LIBRARIES:
            shutil.copy(site / name, folder)
    except OSError as error:
        raise UsageError(f"runner: {folder} cannot be written ({error.strerror}); give another") from error
    made = folder / "tvmq-run"
    include = Path(tvm_ffi.__file__).parent / "include"
    source = PROJECT / "runner" / "main.cpp"
    compiler(architecture).run(["-I", str(include), "-o", str(made), str(source), "-L", str(folder), *FLAGS])
    return made


def main(arguments: Sequence[str]) -> int:
    """Build for the target and into the folder named."""
    if len(arguments) != 2:
        print("usage: bash scripts/runner.sh TARGET FOLDER", file=sys.stderr)
        return 2
    try:
        print(build(arguments[0], Path(arguments[1])))
    except TvmqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
