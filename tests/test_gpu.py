"""What code needs of a GPU, and what it is told on a machine that lacks it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest

from tvmq import gpu, machine
from tvmq.errors import ArtifactError
from tvmq.gpu import (
    Gpu,
    Gpus,
    capability_of,
    features_of_arch,
    fitting,
    is_gpu_feature,
    lacking,
    these_gpus,
    way_out,
)
from tvmq.target import load_profile

ORIN, A10, XAVIER = Gpu("Orin", (8, 7), 13), Gpu("A10", (8, 6), 13), Gpu("Xavier", (7, 2), 12)
LATER_A10 = Gpu("L4", (8, 9), 13)
NONE = Gpus((), "this machine has no driver for one", "install NVIDIA's driver")


class Driver:
    """A CUDA driver whose GPUs have these capabilities, or whose functions fail with a code."""

    def __init__(self, capabilities: Sequence[tuple[int, int]] = (), code: int = 0) -> None:
        self.capabilities, self.code = capabilities, code

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self.code

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, _: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self.capabilities[device.value][attribute - gpu.MAJOR]
        return 0

    def cuGetErrorName(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" if code == 803 else None
        return 0


def found_by(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Gpus:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return these_gpus.__wrapped__()


def here(monkeypatch: pytest.MonkeyPatch, found: Gpus) -> None:
    """Let this machine have these GPUs."""
    monkeypatch.setattr(gpu, "these_gpus", lambda: found)
    monkeypatch.setattr(machine, "these_gpus", lambda: found)
    monkeypatch.setattr(machine, "machine_of", lambda library: machine.this_machine())


def test_features_of_an_architecture_are_told_from_those_of_a_cpu():
    assert features_of_arch("sm_87") == {"sm_87", "cuda_13"}
    assert features_of_arch("sm_72") == {"sm_72", "cuda_12"}  # CUDA 13 has left it out
    assert capability_of("sm_110") == (11, 0)
    assert [is_gpu_feature(name) for name in ("sm_87", "cuda_13", "sse2", "sm3")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("arch", "found", "words"),
    [
        ("sm_87", ORIN, None),
        ("sm_86", LATER_A10, None),
        ("sm_86", A10, None),
        ("sm_80", ORIN, "this one (Orin) has 8.7"),  # a Jetson runs its own code only, and others none of it
        ("sm_87", LATER_A10, "capability 8.7; this one (L4) has 8.9"),
        ("sm_89", A10, "capability 8.9 or a later 8.x; this one (A10) has 8.6"),
        ("sm_90", LATER_A10, "this one (L4) has 8.9"),
        ("sm_75", ORIN, "this one (Orin) has 8.7"),
        ("sm_87", Gpu("Orin", (8, 7), 12), "a driver for CUDA 13; this machine's knows CUDA 12"),
        ("sm_72", XAVIER, "a TVM built for CUDA 12; the runtime in TVM's wheel is for CUDA 13"),
    ],
)
def test_what_is_missing_is_named(arch: str, found: Gpu, words: str | None):
    told = lacking(features_of_arch(arch), found)
    assert told is None if words is None else words in str(told)


def test_every_cause_has_its_way_out(monkeypatch: pytest.MonkeyPatch):
    def out(arch: str, found: Gpu | None) -> str:
        return way_out(features_of_arch(arch), found)

    monkeypatch.setattr(gpu, "these_gpus", lambda: NONE)
    assert out("sm_87", None) == "install NVIDIA's driver"
    assert "compile it for this GPU" in out("sm_80", ORIN)
    assert "update the driver" in out("sm_87", Gpu("Orin", (8, 7), 12))
    assert (out("sm_72", XAVIER), out("sm_87", ORIN)) == ("", "")


def test_a_model_for_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch):
    def refused(features: Sequence[str], found: Gpus, words: str) -> None:
        here(monkeypatch, found)
        with pytest.raises(ArtifactError, match=words):
            machine.require_machine("m.tvmq", features, b"")

    refused(["sm_87", "cuda_13"], NONE, r"capability 8\.7; this machine has no driver .*; install NVIDIA's")
    refused(["sm_87", "cuda_13"], Gpus((A10,)), r"8\.7; this one \(A10\) has 8\.6; compile it for this GPU")
    refused(["sm_72", "cuda_12"], Gpus((XAVIER,)), r"a TVM built for CUDA 12; .*; compile it with `--target")
    here(monkeypatch, Gpus((A10, ORIN)))
    machine.require_machine("m.tvmq", ["sm_87", "cuda_13"], b"")


def test_a_machine_offers_the_features_of_its_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "these_gpus", lambda: Gpus((ORIN, Gpu("H200", (9, 0), 13))))
    offered = machine.machine_features()
    assert {"sm_87", "sm_90", "cuda_13", "cuda_12"} <= offered
    assert not {"sm_91", "sm_89", "cuda_14"} & offered
    for name in ("h100", "a100"):
        missing = [each for each in load_profile(name).missing(offered) if is_gpu_feature(each)]
        assert missing == ([] if name == "h100" else ["sm_80"])
    monkeypatch.setattr(machine, "these_gpus", lambda: NONE)
    assert not any(map(is_gpu_feature, machine.machine_features()))


def test_the_first_gpu_that_fits_is_chosen():
    assert fitting(features_of_arch("sm_86"), (ORIN, A10, LATER_A10)) == 1
    assert fitting(features_of_arch("sm_89"), (ORIN, A10, LATER_A10)) == 2
    assert fitting(features_of_arch("sm_90"), (ORIN, A10, LATER_A10)) is None


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "DRIVER", "libno-such-driver.so.1")
    none = these_gpus.__wrapped__()
    assert (none.found, none.way_out) == ((), "install NVIDIA's driver")
    assert "libno-such-driver.so.1 is not found" in none.trouble


def test_a_driver_says_what_it_has_or_why_it_fails(monkeypatch: pytest.MonkeyPatch):
    found = found_by(monkeypatch, Driver([(7, 0), (8, 6)])).found
    assert found == (Gpu("GPU 0", (7, 0), 13), Gpu("GPU 1", (8, 6), 13))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert found_by(monkeypatch, Driver()).trouble == "this machine's driver sees no GPU"
    assert "CUDA_VISIBLE_DEVICES is '7', other GPUs are hidden" in found_by(monkeypatch, Driver()).way_out
    assert "fails with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in found_by(monkeypatch, Driver(code=803)).trouble
    assert "fails with error 5" in found_by(monkeypatch, Driver(code=5)).trouble
