"""A whole model on GPUs: compiled, saved, loaded, run and verified bit for bit on emulated ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.schedule.cuda.emulator import needs_emulator
from tvmq.errors import GpuError
from tvmq.gpu_runtime import telling


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Check failed: CUDA: out of memory\nmore", "gpu: .*out of memory; compile for a smaller batch"),
        ("CUDALaunch Error: CUDA_ERROR_ILLEGAL_ADDRESS\n grid=(1,1,1)", "ILLEGAL_ADDRESS; start the process"),
    ],
)
def test_a_gpu_that_fails_is_told_in_cudas_words(said: str, words: str):
    with pytest.raises(GpuError, match=words), telling():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), telling():
        raise RuntimeError("another thing")


@pytest.mark.slow
@needs_emulator
@pytest.mark.parametrize("target", ["t4", "a100"])
def test_a_model_runs_on_an_emulated_gpu(target: str):
    command = [sys.executable, "-m", "tests.schedule.cuda.whole_model", target]
    calm = os.environ | {"TVM_THREAD_POOL_SPIN_COUNT": "0"}  # the compiler's idle threads hold up the exit
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=calm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "attention_2x9x32" in done.stdout
