"""What doctor finds, and what it advises."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from tvmq import doctor, report
from tvmq.doctor import Check, Diagnosis, State, check_package, examine
from tvmq.environment import INSTALL_COMPILER, INSTALL_PHOTOS
from tvmq.gpu import Gpu, Gpus


def test_this_environment_can_run_and_says_what_it_found():
    diagnosis = examine()
    assert diagnosis.can_run
    names = [check.name for check in diagnosis.checks]
    assert {"Python", "apache-tvm", "apache-tvm-ffi", "CPU", "target", "linker", "memory"} <= set(names)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_a_missing_package_names_the_command_that_brings_it():
    absent = check_package("no-such-package-9==1.0; extra == 'compile'", State.NO_COMPILE)
    assert absent == Check("no-such-package-9", "not installed", State.NO_COMPILE, f"run {INSTALL_COMPILER}")


def test_a_pin_is_compared_without_its_local_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert check_package("torch==2.13.0", State.NO_COMPILE).state is State.OK
    wrong = check_package("torch==2.14.0", State.NO_RUN)
    assert wrong == Check("torch", "2.13.0+cpu, 2.14.0 is wanted", State.NO_RUN, "pip install torch==2.14.0")


def test_without_pillow_only_photos_are_missing(monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name == "pillow":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    wanted = ["pillow>=11; extra == 'images'", "pillow>=11; extra == 'compile'", "scipy; extra == 'compile'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(importlib.metadata, "version", version)
    diagnosis = examine()
    assert [check for check in diagnosis.checks if check.name == "pillow"] == [
        Check("pillow", "not installed", State.NO_PHOTOS, f"run {INSTALL_PHOTOS}")
    ]
    assert (diagnosis.can_run, diagnosis.can_compile) == (True, True)
    assert "photos cannot be read" in report.verdict(diagnosis)


def test_without_a_linker_artifacts_still_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    diagnosis = examine()
    assert (diagnosis.can_run, diagnosis.can_compile) == (True, False)
    linker = next(check for check in diagnosis.checks if check.name == "linker")
    assert linker == Check("linker", "none found", State.NO_COMPILE, "pip install ziglang")
    assert Check("linker for ARM", "none found", State.OK, "pip install ziglang") in diagnosis.checks


def test_little_memory_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 2**10 if name == "SC_PAGE_SIZE" else 2**20)
    memory = examine().checks[-1]
    assert (memory.found, memory.state) == ("1.0 GiB", State.NO_COMPILE)


def test_gpus_are_listed_or_why_there_is_none(monkeypatch: pytest.MonkeyPatch):
    found = Gpus((Gpu("NVIDIA H200", (9, 0), 13),))
    monkeypatch.setattr(doctor, "these_gpus", lambda: found)
    assert "NVIDIA H200: compute capability 9.0, driver for CUDA 13" in [c.found for c in examine().checks]
    monkeypatch.setattr(doctor, "these_gpus", lambda: Gpus((), "this machine's driver sees no GPU"))
    (gpu,) = [check for check in examine().checks if check.name == "GPU"]
    assert (gpu.found, gpu.state) == ("this machine's driver sees no GPU", State.OK)
