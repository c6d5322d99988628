"""What running an artifact on a GPU needs besides NumPy, in a folder to carry: 9 MB of TVM's wheels."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from root import wheels

CUDA = "nvidia-cuda-runtime"
KEPT = (
    "tvm/lib/libtvm_runtime.so",
    "tvm/lib/libtvm_runtime_cuda.so",
    "tvm_ffi/**/*.py",
    "tvm_ffi/core*.so",
    "tvm_ffi/lib/libtvm_ffi*.so",
    "apache_tvm*.dist-info/METADATA",
    "typing_extensions.py",
    "nvidia/cu13/lib/libcudart.so.13",
)


def prepare(site: Path, python: str) -> None:
    """Put what running needs of the packages, for a version of Python ("3.12") on x86-64, into a folder."""
    if python == "{}.{}".format(*sys.version_info):
        _keep(Path(sysconfig.get_path("platlib")), site)
        return
    with tempfile.TemporaryDirectory() as place:
        wheels(Path(place), "x86_64", python, [CUDA])
        _keep(Path(place), site)


def _keep(packages: Path, site: Path) -> None:
    for pattern in KEPT:
        found = list(packages.glob(pattern))
        if not found:
            raise SystemExit(f"gpu_bench: {packages} has no {pattern}; install the extra `cuda`")
        for path in found:
            place = site / path.relative_to(packages)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
