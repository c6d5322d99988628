"""What this machine and this environment can do with tvmq, and what is missing for the rest.

Nothing is imported to find out: versions come from the packages' metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tvmq import environment
from tvmq.errors import EnvironmentMismatchError
from tvmq.gpu import these_gpus
from tvmq.linker import INSTALL_LINKER, require_linker
from tvmq.record import Record
from tvmq.target import native_profile

PYTHON = ((3, 11), (3, 13))  # from, up to but not including
MEMORY_TO_COMPILE_GB = 4.0
# What decides between profiles; a CPU lists more than a hundred.
TELLING_FEATURES = (
    "avx2", "fma", "avx512f", "avx512vl", "avx512_vnni", "avx512vbmi", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm",
)  # fmt: skip


class State(StrEnum):
    """What a finding means."""

    OK = "ok"
    NO_PHOTOS = "no photos"  # arrays are read, photos are not
    NO_COMPILE = "no compile"  # artifacts run, models cannot be compiled
    NO_RUN = "no run"  # nothing works


PHOTOS = "pillow"
MISSING = {
    "": State.NO_RUN,
    "images": State.NO_PHOTOS,
    "compile": State.NO_COMPILE,
}  # packages, by their extra
INSTALLS = {
    State.NO_RUN: environment.INSTALL,
    State.NO_PHOTOS: environment.INSTALL_PHOTOS,
    State.NO_COMPILE: environment.INSTALL_COMPILER,
}


@dataclass(frozen=True, slots=True)
class Check(Record):
    """One finding."""

    name: str
    found: str
    state: State
    way_out: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis(Record):
    """Every finding, in the order to print."""

    checks: tuple[Check, ...]

    @property
    def can_run(self) -> bool:
        """Tell whether artifacts run here."""
        return all(check.state is not State.NO_RUN for check in self.checks)

    @property
    def can_compile(self) -> bool:
        """Tell whether models can be compiled here."""
        return all(check.state in (State.OK, State.NO_PHOTOS) for check in self.checks)


def examine() -> Diagnosis:
    """Look at Python, packages, CPU, GPUs, linker and memory."""
    return Diagnosis((_python(), *_packages(), *_cpu(), *_gpus(), *_linker(), _memory()))


def _python() -> Check:
    low, high = PYTHON
    fits = low <= sys.version_info[:2] < high
    way_out = "" if fits else f"use Python {low[0]}.{low[1]} or up to, not including, {high[0]}.{high[1]}"
    return Check("Python", platform.python_version(), State.OK if fits else State.NO_RUN, way_out)


def _packages() -> Iterator[Check]:
    try:
        yield Check("tvmq", importlib.metadata.version("tvmq"), State.OK)
        requirements = importlib.metadata.requires("tvmq") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("tvmq", "a checkout that is not installed", State.OK)
        requirements = [
            f"apache-tvm=={environment.TVM_VERSION}",
            f"apache-tvm-ffi=={environment.FFI_VERSION}",
        ]
    for requirement in requirements:
        found = re.search(r"extra\s*==\s*['\"](\w+)['\"]", requirement)
        extra = found[1] if found else ""
        # Of the extra compile too; but what compiles without photos does so without it.
        photos = requirement.startswith(PHOTOS)
        if extra in ("", "images") or (extra == "compile" and not photos):
            yield check_package(requirement, MISSING[extra])


def check_package(requirement: str, missing: State) -> Check:
    """Compare what is installed with a requirement; only exact pins (==) are compared by version.

    missing: what it means if it is not there.
    """
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    pin = re.search(r"==([\w.]+)", requirement.partition(";")[0])
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if found and (pin is None or found.partition("+")[0] == pin[1]):
        return Check(name, found, State.OK)
    if found and pin:
        return Check(name, f"{found}, {pin[1]} is wanted", missing, f"pip install {name}=={pin[1]}")
    return Check(name, "not installed", missing, f"run {INSTALLS[missing]}")


def _cpu() -> Iterator[Check]:
    features = environment.cpu_features()
    telling = " ".join(name for name in TELLING_FEATURES if name in features)
    yield Check("CPU", f"{environment.cpu_name()} ({telling or 'no features known'})", State.OK)
    yield Check("threads", str(environment.default_threads()), State.OK)
    try:
        profile = native_profile()
        yield Check("target", f"{profile.name}: {profile.summary}", State.OK)
    except EnvironmentMismatchError as error:
        yield Check("target", "no profile fits this CPU", State.NO_COMPILE, str(error))


def _gpus() -> Iterator[Check]:
    seen = these_gpus()
    if not seen.found:
        yield Check("GPU", seen.trouble, State.OK)
    for gpu in seen.found:
        able = "compute capability {}.{}".format(*gpu.capability)
        yield Check("GPU", f"{gpu.name}: {able}, driver for CUDA {gpu.cuda}", State.OK)


def _linker() -> Iterator[Check]:
    for name, triple, missing in (
        ("linker", None, State.NO_COMPILE),
        ("linker for ARM", "aarch64-linux-gnu", State.OK),
    ):
        try:
            yield Check(name, " ".join(require_linker(triple).command), State.OK)
        except EnvironmentMismatchError:
            yield Check(name, "none found", missing, INSTALL_LINKER)


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Check("memory", "unknown", State.OK)
    if total >= MEMORY_TO_COMPILE_GB:
        return Check("memory", f"{total:.1f} GiB", State.OK)
    way_out = f"compile on a machine with {MEMORY_TO_COMPILE_GB:g} GiB, run the artifact here"
    return Check("memory", f"{total:.1f} GiB", State.NO_COMPILE, way_out)
