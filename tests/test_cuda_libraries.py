"""Where NVIDIA's libraries are looked for, and the sentence when they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tvmq import cuda_libraries
from tvmq.cuda_libraries import library, load_cudart, load_driver
from tvmq.errors import EnvironmentMismatchError


def test_a_library_in_a_wheel_comes_before_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "cu13" / "lib" / "libx.so").touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(cuda_libraries.importlib.util, "find_spec", lambda name: found)
    assert library("cu13/lib", "libx.so") == str(tmp_path / "cu13" / "lib" / "libx.so")
    assert library("cu13/lib", "liby.so") == "liby.so"


def test_what_is_missing_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_libraries, "CUDART", ("cu13/lib", "libno-such-cudart.so.13"))
    monkeypatch.setattr(cuda_libraries, "DRIVER", "libno-such-driver.so.1")
    with pytest.raises(EnvironmentMismatchError, match=r"libno-such-cudart.so.13 not found.*\[gpu\]"):
        load_cudart()
    with pytest.raises(EnvironmentMismatchError, match="install its driver"):
        load_driver()


def test_a_driver_that_is_too_old_for_tvms_runtime_is_named(tmp_path: Path):
    path = tmp_path / "runtime.so"
    path.write_bytes(b"no library")
    with pytest.raises(
        EnvironmentMismatchError, match=r"does not load on this machine's driver \(.*update it"
    ):
        cuda_libraries._load_tvm_runtime(path)


def test_asking_whether_a_library_is_loaded_does_not_load_it():
    script = (
        "import ctypes, os; from tvmq.cuda_libraries import _is_loaded; "
        "assert not _is_loaded('libdl.so.2'); ctypes.CDLL('libdl.so.2'); assert _is_loaded('libdl.so.2')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
