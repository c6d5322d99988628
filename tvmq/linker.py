"""What links compiled kernels to a library, for this machine or for another."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tvmq.environment import cache_folder
from tvmq.errors import EnvironmentMismatchError

HOST_COMPILERS = ("c++", "g++", "clang++")
INSTALL_LINKER = "pip install ziglang"
# The oldest C library that TVM's own wheels run with (manylinux_2_28); Debian 10 and later have it.
GLIBC = "2.28"


@dataclass(frozen=True, slots=True)
class Linker:
    """Links object files to a shared library; hand it to export_library(fcompile=...)."""

    command: tuple[str, ...]
    stamp: Path | None = None  # a file that appears with the first link, where that one takes long
    object_format: ClassVar[str] = "o"  # read by export_library

    def __call__(self, output: str, objects: str | Sequence[str], options: Any = None, **_: Any) -> None:
        """Write the shared library `output`; raise EnvironmentMismatchError with the linker's words."""
        files = [objects] if isinstance(objects, str) else list(objects)
        last = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-s", "-lm"]
        self.run(["-shared", "-fPIC", "-o", str(output), *(options or []), *files, *last])

    def run(self, arguments: Sequence[str]) -> None:
        """Run the compiler driver; raise EnvironmentMismatchError with its words."""
        import subprocess  # 5 ms that running a model need not spend

        command = [*self.command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise EnvironmentMismatchError(
                f"linker: {self.command[0]} cannot be run ({error.strerror}); run `{INSTALL_LINKER}`"
            ) from error
        if done.returncode:
            words = (done.stderr or done.stdout).strip()[-2000:]
            raise EnvironmentMismatchError(f"linker: {' '.join(self.command)} failed: {words}")
        if self.stamp is not None:
            with contextlib.suppress(OSError):  # only the next progress line is wrong then
                self.stamp.parent.mkdir(parents=True, exist_ok=True)
                self.stamp.touch()

    @property
    def stage(self) -> str:
        """Return what progress calls it: when ziglang first links for a machine, it builds a C library."""
        first = self.stamp is not None and not self.stamp.exists()
        return "first link (up to a minute)" if first else "link"


def require_linker(triple: str | None = None) -> Linker:
    """Return a linker for this machine, or for `triple` ("aarch64-linux-gnu").

    For this machine: $CXX, c++, g++, clang++, else the PyPI package ziglang; for another: <triple>-gcc, -g++,
    else ziglang. Raises EnvironmentMismatchError that names ziglang.
    """
    if triple is not None and triple.split("-")[0] == platform.machine():
        triple = None
    system = _system(triple) if triple else ""
    names: tuple[str, ...] = (f"{system}-gcc", f"{system}-g++") if triple else HOST_COMPILERS
    if not triple and os.environ.get("CXX"):
        names = (os.environ["CXX"], *names)
    for name in names:
        path = shutil.which(name)
        if path:
            return Linker((path,))
    if importlib.util.find_spec("ziglang") is not None:
        target = ("-target", f"{system}.{GLIBC}") if triple else ()
        return Linker((sys.executable, "-m", "ziglang", "cc", *target), _stamp(system or "here"))
    who = f"linker for {system}" if triple else "linker"
    raise EnvironmentMismatchError(
        f"environment: no {who} found, one of {', '.join(names)} or the PyPI package ziglang is wanted; "
        f"run `{INSTALL_LINKER}`"
    )


def _system(triple: str) -> str:
    """Return a triple as compilers spell it: aarch64-linux-gnu, arm-linux-gnueabihf."""
    architecture, *rest = triple.split("-")
    abi = rest[-1] if rest and rest[-1].startswith(("gnu", "musl")) else "gnu"
    if architecture.startswith("armv"):
        architecture = "arm"
    return f"{'aarch64' if architecture == 'arm64' else architecture}-linux-{abi}"


def _stamp(system: str) -> Path:
    from importlib.metadata import PackageNotFoundError, version

    try:
        made_by = version("ziglang")
    except PackageNotFoundError:
        made_by = "unknown"
    return cache_folder() / f"linked-by-ziglang-{made_by}-for-{system}"
