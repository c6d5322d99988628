"""A real net for GPUs, on a machine without one: in integers, by kernels, one file with device code."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import tvmq
from tvmq.artifact import read_manifest
from tvmq.build import build
from tvmq.compiled import CompiledModel
from tvmq.errors import ArtifactError, EnvironmentMismatchError, TvmqWarning
from tvmq.machine import machine_of
from tvmq.pipeline import describe, lower
from tvmq.plan.assign import achieved
from tvmq.quantizer import quantized
from tvmq.schedule.cuda.toolkit import require_cuda
from tvmq.target import load_profile

EM_CUDA = (190).to_bytes(2, "little")  # of an ELF file with device code


@pytest.mark.slow
def test_resnet18_is_compiled_for_a_server_and_a_jetson(tmp_path: Path):
    try:
        require_cuda("sm_90")
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    tvmq.mend_torchvision()
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", pretrained=False, zero_init_last=False).eval()
    random = np.random.default_rng(0)
    pictures = [torch.from_numpy(random.standard_normal((1, 3, 64, 64), np.float32)) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvmq.CalibrationWarning)  # four samples are few
        chosen = quantized(net, (pictures[0],), pictures, preset="fast")
    integer = lower(chosen.mod, chosen.numbers)
    coverage = achieved(chosen.coverage, integer)
    assert coverage.macs_integer_fraction == 1
    libraries = {}
    for target in ("h100", "jetson-orin"):
        profile = load_profile(target)
        with warnings.catch_warnings():
            warnings.simplefilter("error", TvmqWarning)  # a site without a kernel
            built = build(integer, profile)
        libraries[target] = built.library
        model = CompiledModel(
            built, describe(profile, coverage, chosen.plan, chosen.numbers, chosen.seen, {})
        )
        model.save(tmp_path / f"{target}.tvmq")
        assert len(built.library) < 2 << 20
        assert _device_code(built.library)
    assert {name: machine_of(code) for name, code in libraries.items()} == {
        "h100": "x86_64",
        "jetson-orin": "aarch64",
    }
    manifests = [read_manifest(tmp_path / f"{target}.tvmq") for target in libraries]
    assert manifests[0].golden_outputs == manifests[1].golden_outputs
    assert [site.sha256 for site in manifests[0].sites] == [site.sha256 for site in manifests[1].sites]
    with pytest.raises(ArtifactError, match="holds code for linux on aarch64"):
        tvmq.load(tmp_path / "jetson-orin.tvmq")


def _device_code(library: bytes) -> bool:
    """Tell whether a library holds an ELF file for a GPU."""
    at = library.find(b"\x7fELF", 4)
    while at >= 0 and library[at + 18 : at + 20] != EM_CUDA:
        at = library.find(b"\x7fELF", at + 4)
    return at >= 0
