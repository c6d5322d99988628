"""What code needs of a GPU, and what it is told on a machine that lacks it."""

from __future__ import annotations

import pytest

from tvmq import gpu, machine
from tvmq.errors import ArtifactError
from tvmq.gpu import Gpu, capability_of, features_of_arch, is_gpu_feature, lacking
from tvmq.target import load_profile

ORIN = Gpu("Orin", (8, 7), 13)


def test_features_of_an_architecture_are_told_from_those_of_a_cpu():
    assert features_of_arch("sm_87") == {"sm_87", "cuda_13"}
    assert features_of_arch("sm_72") == {"sm_72", "cuda_11"}  # CUDA 13 has left it out
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
        ("sm_80", ORIN, None),
        ("sm_89", ORIN, "capability 8.9 or a later 8.x; this one (Orin) has 8.7"),
        ("sm_90", ORIN, "this one (Orin) has 8.7"),
        ("sm_75", ORIN, "this one (Orin) has 8.7"),
        ("sm_87", None, "no GPU, or no driver"),
        ("sm_87", Gpu("Orin", (8, 7), 12), "a driver for CUDA 13; this machine's knows CUDA 12"),
    ],
)
def test_what_is_missing_is_named(arch: str, found: Gpu | None, words: str | None):
    told = lacking(features_of_arch(arch), found)
    assert told is None if words is None else words in str(told)


def test_a_model_for_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "this_gpu", lambda: None)
    monkeypatch.setattr(machine, "machine_of", lambda library: machine.this_machine())
    with pytest.raises(
        ArtifactError, match=r"needs an NVIDIA GPU of compute capability 8\.7 .* compile it for"
    ):
        machine.require_machine("m.tvmq", ["sm_87", "cuda_13"], b"")
    monkeypatch.setattr(machine, "this_gpu", lambda: ORIN)
    machine.require_machine("m.tvmq", ["sm_87", "cuda_13"], b"")


def test_a_machine_offers_the_features_of_its_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "this_gpu", lambda: Gpu("H200", (9, 0), 13))
    offered = machine.machine_features()
    assert {"sm_90", "cuda_13", "cuda_12"} <= offered
    assert not {"sm_91", "sm_89", "cuda_14"} & offered
    for name in ("h100", "a100"):
        missing = [each for each in load_profile(name).missing(offered) if is_gpu_feature(each)]
        assert missing == ([] if name == "h100" else ["sm_80"])
    monkeypatch.setattr(machine, "this_gpu", lambda: None)
    assert not any(map(is_gpu_feature, machine.machine_features()))


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "DRIVER", "libno-such-driver.so.1")
    assert gpu.this_gpu.__wrapped__() is None
