"""What this machine and this Python environment offer; nothing heavy is imported to find out."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from functools import cache
from pathlib import Path

from tvmq.errors import EnvironmentMismatchError

# One pair only: a newer tvm-ffi crashes TVM's tensorize without a message, and TVM itself checks nothing.
TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post1"
PIP_COMMAND = f"pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={FFI_VERSION}"

# What the extra `compile` brings for every model; running an artifact needs none of it.
COMPILER_PACKAGES = ("onnx", "psutil", "scipy", "torch")
INSTALL = "`pip install -c requirements/tested.txt .` in a clone of tvmq"
INSTALL_PHOTOS = """`pip install -c requirements/tested.txt ".[images]"` in a clone of tvmq"""
INSTALL_COMPILER = """`pip install -c requirements/tested.txt ".[compile]"` in a clone of tvmq"""

CPUINFO = Path("/proc/cpuinfo")
CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
THREADS = Path("/proc/self/task")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# What macOS calls the features that Linux lists.
MACOS_ARM_FEATURES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_RDM": "asimdrdm",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_LSE": "atomics",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}

# The same for aarch64, as the bits that Linux gives every process: an emulator tells its own there, where
# /proc/cpuinfo may show those of the machine below.
AT_HWCAP, AT_HWCAP2 = 16, 26
HWCAP_BITS = {"asimd": 1, "atomics": 8, "asimdhp": 10, "asimdrdm": 12, "asimddp": 20, "sve": 22}
HWCAP2_BITS = {"sve2": 1, "i8mm": 13}


def versions() -> dict[str, str | None]:
    """Return the installed versions of the two packages that tvmq runs on, None for an absent one."""
    return {name: _version(name) for name in ("apache-tvm", "apache-tvm-ffi")}


def require_tvm() -> None:
    """Raise EnvironmentMismatchError unless exactly the supported pair of TVM and its FFI is installed."""
    wanted = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}
    found = versions()
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong:
        state = " and ".join(f"{name} {found[name] or 'is not installed'}" for name in wrong)
        raise EnvironmentMismatchError(
            f"environment: {state} found, {' and '.join(f'{n} {wanted[n]}' for n in wrong)} wanted; "
            f"run `{PIP_COMMAND}`"
        )


def require_compiler() -> None:
    """Raise EnvironmentMismatchError unless the packages that compiling needs are installed."""
    missing = [name for name in COMPILER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentMismatchError(
            f"environment: {', '.join(missing)} not installed, compiling needs them; run {INSTALL_COMPILER}"
        )


@cache
def cpu_features() -> frozenset[str]:
    """Return this CPU's features as Linux spells them (`avx512_vnni`, `asimddp`); empty if unknown."""
    if platform.machine() == "aarch64" and sys.platform.startswith("linux"):
        return _arm_features()
    if CPUINFO.is_file():
        return _listed_features(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    if sys.platform == "darwin":
        return _macos_features()
    if importlib.util.find_spec("cpuinfo") is not None:
        return frozenset(importlib.import_module("cpuinfo").get_cpu_info().get("flags", ()))
    return frozenset()


def allow_amx_tiles() -> bool:
    """Ask Linux to let this process use AMX tiles, whose state is large; return whether it does."""
    system_call, request, tile_data = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).syscall(system_call, request, tile_data) == 0)


@cache
def cpu_name() -> str:
    """Return the CPU's name for people, e.g. "AMD EPYC 9R14"."""
    if CPUINFO.is_file():
        fields = _cpuinfo_fields(CPUINFO.read_text(encoding="utf-8", errors="replace"))
        name = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
        if name:
            return name
        if "CPU part" in fields:  # servers of ARM tell numbers alone, which `lscpu` knows names of
            told = f"implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
            return f"{platform.machine()} {told}"
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


@cache
def cpu_identity() -> str:
    """Return what tells CPUs apart whose times differ: a virtual machine may call several by one name."""
    fields = _cpuinfo_fields(CPUINFO.read_text("utf-8", "replace")) if CPUINFO.is_file() else {}
    numbers = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
    told = [f"{word} {fields[key]}" for word, key in numbers if key in fields]
    return ", ".join([cpu_name(), " ".join(told)]) if told else cpu_name()


def allowed_cpus() -> tuple[int, ...]:
    """Return the numbers of the CPUs that this process might run on when this module was imported.

    Later it may look like fewer: TVM's thread pool, left to itself, binds the thread that calls it to a core.
    """
    return _ALLOWED_CPUS


def _affinity() -> tuple[int, ...]:
    if not hasattr(os, "sched_getaffinity"):
        return tuple(range(os.cpu_count() or 1))
    threads = [int(path.name) for path in THREADS.iterdir()] if THREADS.is_dir() else [0]
    cpus: set[int] = set()
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            cpus |= os.sched_getaffinity(thread)
    return tuple(sorted(cpus))


_ALLOWED_CPUS = _affinity()


def default_threads() -> int:
    """Return how many threads to compute with: allowed physical cores, capped by a container's CPU quota.

    The environment variables TVM_NUM_THREADS and OMP_NUM_THREADS come first.
    """
    allowed = allowed_cpus()
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            return min(int(value), len(allowed))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(len(cores))))


def cache_folder() -> Path:
    """Return the folder of what can be made or measured again: $XDG_CACHE_HOME/tvmq, else ~/.cache/tvmq."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path there is to be ignored.
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "tvmq"


def _siblings(cpu: int) -> str:
    try:
        return (CPU_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(otherwise: int) -> int:
    try:
        limit, period = CGROUP_QUOTA.read_text().split()
        return otherwise if limit == "max" else -(-int(limit) // int(period))
    except (OSError, ValueError):
        return otherwise


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo_fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _listed_features(text: str) -> frozenset[str]:
    fields = _cpuinfo_fields(text)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _arm_features() -> frozenset[str]:
    auxiliary = ctypes.CDLL(None).getauxval
    auxiliary.restype, auxiliary.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    tables = ((AT_HWCAP, HWCAP_BITS), (AT_HWCAP2, HWCAP2_BITS))
    return frozenset(
        name for which, bits in tables for name, bit in bits.items() if auxiliary(which) >> bit & 1
    )


def _macos_features() -> frozenset[str]:
    if platform.machine() == "arm64":
        return frozenset(linux for name, linux in MACOS_ARM_FEATURES.items() if _sysctl(name) == "1")
    words = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}"
    return frozenset(words.lower().replace(".", "_").split())


def _sysctl(name: str) -> str:
    import subprocess

    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
