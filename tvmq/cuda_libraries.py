"""NVIDIA's libraries and TVM's CUDA runtime: where they lie, in what order they are loaded."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

from tvmq.errors import EnvironmentMismatchError
from tvmq.gpu import DRIVER

# The wheels of PyPI's nvidia-* packages put their libraries here, in the namespace package `nvidia`.
CUDART = ("cu13/lib", "libcudart.so.13")
TVM_RUNTIME = "libtvm_runtime_cuda.so"
INSTALL = '`pip install -c requirements/tested.txt ".[{extra}]"` in a clone of tvmq'


def library(folder: str, name: str) -> str:
    """Return the path of a library in the wheels of NVIDIA's packages, else its bare name."""
    found = importlib.util.find_spec("nvidia")
    for place in found.submodule_search_locations or () if found else ():
        path = Path(place) / folder / name
        if path.is_file():
            return str(path)
    return name


def load_driver() -> None:
    """Load the GPU's driver; raises EnvironmentMismatchError where there is none."""
    try:
        ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EnvironmentMismatchError(
            f"environment: {DRIVER} not found, the model runs on an NVIDIA GPU; install its driver"
        ) from error


def load_cudart() -> None:
    """Load CUDA's runtime library; raises EnvironmentMismatchError that names the extra with it."""
    if _is_loaded(CUDART[1]):
        return
    try:
        ctypes.CDLL(library(*CUDART), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EnvironmentMismatchError(
            f"environment: {CUDART[1]} not found, the runtime library of CUDA 13 is wanted; "
            f"run {INSTALL.format(extra='gpu')}"
        ) from error


@cache
def load_tvm_runtime() -> None:
    """Load TVM's CUDA runtime, on whichever driver is loaded; TVM's own runtime is loaded already."""
    load_cudart()
    found = importlib.util.find_spec("tvm")
    places = (
        [Path(place) / "lib" / TVM_RUNTIME for place in found.submodule_search_locations or ()]
        if found
        else []
    )
    for path in places:
        if path.is_file():
            _load_tvm_runtime(path)
            return
    raise EnvironmentMismatchError(
        f"environment: {TVM_RUNTIME} is missing from the installed apache-tvm, PyPI's wheel is wanted; "
        f"run `pip install --force-reinstall --no-deps apache-tvm`"
    )


def _load_tvm_runtime(path: Path) -> None:
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:  # it takes functions from the driver that older ones lack
        raise EnvironmentMismatchError(
            f"environment: TVM's CUDA runtime does not load on this machine's driver ({error}); "
            f"a driver for CUDA 13 is wanted: update it"
        ) from error


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True
