"""Where NVIDIA's libraries are looked for, and the sentence when they are missing."""

from __future__ import annotations

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
