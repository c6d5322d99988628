"""Compile a small transformer for a GPU; save, load, run and verify it on an emulated one, in one process.

    python -m tests.schedule.cuda.whole_model TARGET [MODEL]

MODEL, of scripts/bench/models.py, is verified in its place, which takes minutes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import tvmq
from tests import tiny_transformer
from tests.schedule.cuda.emulator import EmulatedCompiler, load_driver
from tvmq import pipeline
from tvmq.compiled import CompiledModel
from tvmq.errors import GpuError, InputError
from tvmq.gpu import DRIVER
from tvmq.schedule.cuda import toolkit
from tvmq.schedule.cuda.gpu import SHARED_BYTES, GpuModel
from tvmq.target import load_profile


def main(target: str, name: str = "") -> None:
    profile = load_profile(target)
    assert profile.capability is not None
    os.environ["TVMQ_EMULATED_CAPABILITY"] = "{}{}".format(*profile.capability)
    os.environ["TVMQ_EMULATED_DEVICES"] = "2"  # of which the second fits
    os.environ["TVMQ_EMULATED_SHARED_BYTES"] = str(SHARED_BYTES[profile.capability])
    with tempfile.TemporaryDirectory() as folder:
        load_driver(Path(folder))
        for module in (toolkit, pipeline):
            module.require_cuda = EmulatedCompiler  # type: ignore[attr-defined]
        toolkit.whole = lambda generated: generated  # the emulator adds the device functions itself
        if name:
            verify_real(name, target)
            return
        model = tiny_transformer.compiled(target=target, preset="fast")
        model.verify().require()
        x = tiny_transformer.inputs(1, seed=5)[0]
        model.verify(x).require()
        model.verify(-x).require()  # kernels recorded by now compute anew from other inputs
        launches = ctypes.CDLL(DRIVER).cuEmulatedGraphLaunches()
        assert launches == 2, f"{launches} launches of graphs"
        path = Path(folder) / "model.tvmq"
        model.save(path)
        loaded = tvmq.load(path)
        loaded.verify().require()
        np.testing.assert_array_equal(loaded(x), model(x))
        stays_on_the_gpu(loaded, x)
        failures_are_told(loaded, x)
        few_bits_are_exact(target, x)
        floats_take_part(target)
        measured = model.benchmark(repeat=2, warmup=0)
        assert measured.gpu_ms is not None
        assert measured.breakdown.peak_gmacs > 1e4  # of the GPU, not of this CPU's threads
        print(f"{len(model.trace(x))} sites, {model.manifest.description.features}\n{measured.breakdown}")


def verify_real(name: str, target: str) -> None:
    """Compile a model of the benchmark, and compare an emulated run with the reference."""
    scripts = Path(__file__).parents[3] / "scripts"
    sys.path[:0] = [str(scripts / folder) for folder in ("gpu", "bench", "shared")]
    import gpu_models

    model = gpu_models.made(name, 1, target)[1]
    verdict = model.verify()
    print(f"{name} for {target}: {verdict.sites} sites, {verdict.outputs} outputs; {verdict.mismatches=}")
    verdict.require()


def few_bits_are_exact(target: str, x: np.ndarray) -> None:
    """Compile the model with weights of 4 bits, which some tensor cores take as they lie in memory."""
    model = tiny_transformer.compiled(target=target, preset="fast", bits="w4a8")
    gpu = GpuModel.of(load_profile(target))
    assert gpu is not None
    kernels = [part.kernel for part in model.benchmark(repeat=1, warmup=0).breakdown.parts]
    assert any("_w4" in name for name in kernels) == (4 in gpu.weight_bits)
    model.verify(x).require()


def floats_take_part(target: str) -> None:
    """Leave a convolution in float, which is loops that TVM made: two kernels with the chain behind it."""
    torch.manual_seed(0)
    conv, head = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 8, 1)
    x = torch.randn(4, 1, 3, 9, 9)
    model = tvmq.compile(
        torch.nn.Sequential(conv, torch.nn.ReLU(), head).eval(), example_inputs=(x[0],),
        calibration=[(each,) for each in x], target=target, preset="fast", ignored=["0"],
    )  # fmt: skip
    assert [row.site for row in model.coverage.rows if row.integer] == ["2"]
    model.verify(x[0].numpy()).require()


def stays_on_the_gpu(model: CompiledModel, x: np.ndarray) -> None:
    """Call the model with a tensor in the GPU's memory: so is its answer, and later calls leave it alone."""
    program = model._program
    answer = model(program._constant(x))
    wanted = model(x)
    model(-x)
    assert tuple(answer.__dlpack_device__()) == (2, 1)
    np.testing.assert_array_equal(program._released(answer, ()), wanted)
    for wrong in (x[:, 1:], x.astype("float16")):
        with pytest.raises(InputError, match=r"float32 \[1, 9, 64\] wanted"):
            model(program._constant(np.ascontiguousarray(wrong)))


def failures_are_told(model: CompiledModel, x: np.ndarray) -> None:
    """Let the GPU fail: the error says what CUDA says, not that the artifact is damaged."""
    failure = ctypes.c_int.in_dll(ctypes.CDLL(DRIVER), "cuEmulatedFailure")
    for code, call, words in (
        (700, model, "CUDA.*emulated error.*start the process anew"),
        (2, lambda x: model.trace(x), "CUDA.*out of memory; compile for a smaller batch"),
    ):
        failure.value = code
        with pytest.raises(GpuError, match=words):
            call(x)
    failure.value = 0


if __name__ == "__main__":
    main(*sys.argv[1:])
