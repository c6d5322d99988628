"""A Python for aarch64 that runs here: Debian's packages and TVM's wheels in a folder, inside qemu-user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tvmq.environment import FFI_VERSION, TVM_VERSION
from tvmq.errors import EnvironmentMismatchError

PROJECT = Path(__file__).parents[2]
DEFAULT = PROJECT / "out" / "arm"
PYTHON = "python3.11"
DEBIAN = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1",
    "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libuuid1", "libsqlite3-0",
)  # fmt: skip
WHEELS = (f"apache-tvm=={TVM_VERSION}", f"apache-tvm-ffi=={FFI_VERSION}", "numpy", "typing_extensions")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))

WRAPPER = """#!/usr/bin/env bash
# {python} for aarch64, emulated; QEMU_CPU names the core.
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
export QEMU_CPU=${{QEMU_CPU:-cortex-a72}} QEMU_LD_PREFIX=$here/root
export PYTHONHOME=$here/root/usr PYTHONPATH={project}:$here/site
export LD_LIBRARY_PATH=$here/root/lib/aarch64-linux-gnu:$here/root/usr/lib/aarch64-linux-gnu
exec {qemu} -E LD_LIBRARY_PATH="$LD_LIBRARY_PATH" -U LD_PRELOAD "$here/root/usr/bin/{python}" "$@"
"""


def emulator() -> str:
    """Return the path of qemu-aarch64; raise EnvironmentMismatchError without one."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        raise EnvironmentMismatchError("arm_emulated: no qemu-aarch64 found; install qemu-user-static")
    return found


def emulated_python(folder: Path = DEFAULT) -> Path:
    """Return the emulated interpreter in folder, made by the first call; QEMU_CPU chooses its core.

    Raises EnvironmentMismatchError where this machine has no qemu-aarch64, or no packages to make it from.
    """
    qemu, python = emulator(), folder / "python"
    stamp, wanted = folder / ".made", "\n".join((*DEBIAN, *WHEELS))
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _debian_packages(folder / "root")
        wheels(folder / "site")
        stamp.write_text(wanted)
    python.write_text(WRAPPER.format(python=PYTHON, project=PROJECT, qemu=qemu))
    python.chmod(0o755)
    return python


def _debian_packages(root: Path) -> None:
    """Unpack arm64 packages into root; apt's own lists and architectures stay as they are."""
    sources = [path for path in SOURCES if path.is_file() and path.stat().st_size]
    if not sources or not shutil.which("apt-get"):
        raise EnvironmentMismatchError("arm_emulated: the emulated Python comes from Debian; no apt-get here")
    with tempfile.TemporaryDirectory() as place:
        state = Path(place)
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (state / name).mkdir(parents=True)
        options = {
            "Dir::State": place, "Dir::State::lists": f"{place}/lists", "Dir::State::status": os.devnull,
            "Dir::Cache": f"{place}/cache", "Dir::Etc::SourceList": str(sources[0]),
            "Dir::Etc::SourceParts": os.devnull, "APT::Sandbox::User": "root",
            "APT::Architecture": "arm64", "APT::Architectures::": "arm64",
        }  # fmt: skip
        apt = [
            "apt-get",
            "-q",
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
        ]
        _run([*apt, "update"])
        _run([*apt, "download", *DEBIAN], cwd=state / "debs")
        for package in sorted((state / "debs").iterdir()):
            _run(["dpkg", "-x", str(package), str(root)])


def wheels(site: Path, architecture: str = "aarch64", python: str = PYTHON, more: Sequence[str] = ()) -> None:
    """Put TVM's runtime for Linux on an architecture into a folder, with what it needs, and more packages."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{architecture}")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    tested = ["-c", str(PROJECT / "requirements" / "tested.txt"), "--only-binary=:all:", "--no-compile"]
    version = ["--python-version", python.removeprefix("python"), *platforms]
    _run([*pip, *tested, *version, "--target", str(site), *WHEELS, *more])
    (site / "tvm" / "lib" / "libtvm_compiler.so").unlink()  # 240 MB that running does without


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise EnvironmentMismatchError(f"scripts/arm: {command[0]} failed: {' '.join(words)}")
