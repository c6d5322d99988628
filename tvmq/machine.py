"""Whether a library's code runs on this machine; what is missing is named before any of it is loaded."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Sequence

from tvmq.environment import allow_amx_tiles, cpu_features, cpu_name
from tvmq.errors import ArtifactError, EnvironmentMismatchError
from tvmq.gpu import features_of_gpu, fitting, is_gpu_feature, lacking, these_gpus, way_out

ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64"}
MACHINE_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
NARROW = {"x86_64": "i386", "aarch64": "arm"}  # what a process of 32 bits runs there


def machine_of(library: bytes) -> str:
    """Return the architecture an ELF library is for, "" if it is none that tvmq knows."""
    if library[:4] != b"\x7fELF":
        return ""
    return ELF_MACHINES.get(int.from_bytes(library[18:20], "little"), "")


def this_machine() -> str:
    """Return the architecture of this process as Linux names it; 32-bit systems run on 64-bit kernels too."""
    name = platform.machine().lower()
    name = "arm" if name.startswith("armv") else MACHINE_ALIASES.get(name, name)
    return NARROW.get(name, name) if sys.maxsize < 2**32 else name


def machine_features() -> frozenset[str]:
    """Return what this machine offers to code: the features of its CPU and of its GPUs."""
    return cpu_features().union(*map(features_of_gpu, these_gpus().found))


def require_machine(where: object, features: Sequence[str], library: bytes) -> None:
    """Raise ArtifactError unless this machine executes the library, whose code needs these features."""
    built_for, here = machine_of(library), this_machine()
    if built_for != here or not sys.platform.startswith("linux"):
        raise ArtifactError(
            f"{where}: holds code for linux on {built_for or 'an unknown machine'}, "
            f"this is {sys.platform} on {here}; {_other_way_out(built_for, here)}"
        )
    of_gpu = [feature for feature in features if is_gpu_feature(feature)]
    available = cpu_features()
    missing = sorted(set(features) - set(of_gpu) - available) if available else []
    if missing:
        raise ArtifactError(
            f"{where}: needs the CPU feature {', '.join(missing)}, which this CPU ({cpu_name()}) lacks; "
            f"{_way_out()}"
        )
    if "amx_tile" in features and not allow_amx_tiles():
        raise ArtifactError(
            f"{where}: needs AMX tiles, which Linux does not let this process use (5.16 or later does); "
            f"compile it for `--target native`"
        )
    if of_gpu:
        _require_gpu(where, of_gpu)


def runs_here(features: Sequence[str], library: bytes) -> bool:
    """Tell whether this machine can execute the library."""
    try:
        require_machine("", features, library)
    except ArtifactError:
        return False
    return True


def _require_gpu(where: object, features: Sequence[str]) -> None:
    gpus = these_gpus().found
    if fitting(features, gpus) is None:
        first = gpus[0] if gpus else None
        out = way_out(features, first) or _way_out()
        raise ArtifactError(f"{where}: needs {lacking(features, first)}; {out}")


def _other_way_out(built_for: str, here: str) -> str:
    if NARROW.get(built_for) == here:
        return "install a 64-bit system: this one, or this Python, has 32 bits"
    return _way_out()


def _way_out() -> str:
    from tvmq.target import native_profile  # 20 ms that a fitting machine need not spend

    with contextlib.suppress(EnvironmentMismatchError):
        return f"compile it with `--target {native_profile(cpu_features()).name}`"
    return "no target of tvmq fits this machine (see `tvmq targets`)"
