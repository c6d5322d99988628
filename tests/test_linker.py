import importlib.util
import sys

import pytest

from tvmq import linker
from tvmq.errors import EnvironmentMismatchError
from tvmq.linker import GLIBC, Linker, require_linker
from tvmq.machine import machine_of


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.fixture
def only_ziglang(nothing_installed, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)


def test_ziglang_serves_where_no_compiler_is(only_ziglang):
    zig = (sys.executable, "-m", "ziglang", "cc")
    assert require_linker().command == zig
    assert require_linker("riscv64-linux-gnu").command == (*zig, "-target", f"riscv64-linux-gnu.{GLIBC}")


@pytest.mark.parametrize(
    ("triple", "system"),
    [
        ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu"),
        ("arm64-linux-gnu", "aarch64-linux-gnu"),
        ("armv7l-linux-gnueabihf", "arm-linux-gnueabihf"),
    ],
)
def test_a_cross_compiler_of_the_system_comes_first(only_ziglang, monkeypatch, triple, system):
    assert require_linker(triple).command[-1] == f"{system}.{GLIBC}"
    monkeypatch.setattr(linker.shutil, "which", lambda name: name if name == f"{system}-gcc" else None)
    assert require_linker(triple).command == (f"{system}-gcc",)


def test_no_linker_names_the_package_that_brings_one(nothing_installed):
    with pytest.raises(EnvironmentMismatchError, match="run `pip install ziglang`"):
        require_linker()
    with pytest.raises(EnvironmentMismatchError, match=r"no linker for riscv64-linux-gnu found, .* ziglang`"):
        require_linker("riscv64-linux-gnu")


def test_a_failing_linker_is_quoted(tmp_path):
    with pytest.raises(EnvironmentMismatchError, match=r"linker: .* failed: .*absent\.o"):
        require_linker()(str(tmp_path / "out.so"), [str(tmp_path / "absent.o")])


def test_a_linker_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EnvironmentMismatchError, match=r"absent cannot be run .*run `pip install ziglang`"):
        Linker((str(tmp_path / "absent"),)).run([])


def test_the_first_link_by_ziglang_is_told_from_later_ones(only_ziglang, tmp_path):
    cross = require_linker("aarch64-linux-gnu")
    assert cross.stage.startswith("first link")
    Linker((sys.executable, "-c", ""), cross.stamp).run(["x"])
    assert require_linker("aarch64-linux-gnu").stage == "link"
    assert require_linker("riscv64-linux-gnu").stage.startswith("first link")
    assert Linker(("g++",)).stage == "link"


@pytest.mark.slow
@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "armv7l-linux-gnueabihf"])
def test_ziglang_links_a_library_for_another_machine(tmp_path, triple, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    (tmp_path / "f.c").write_text("#include <math.h>\nfloat f(float x) { return expf(x); }\n")
    require_linker(triple)(str(tmp_path / "f.so"), [str(tmp_path / "f.c")])
    library = (tmp_path / "f.so").read_bytes()
    assert machine_of(library) == {"aarch64": "aarch64", "armv7l": "arm"}[triple.split("-")[0]]
    assert b"libstdc++" not in library
