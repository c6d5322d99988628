"""A batch computed sample by sample: the same numbers on any threads, as one program to those who call it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tests import tiny_program
from tvmq import pipeline, runtime
from tvmq.environment import allowed_cpus
from tvmq.errors import UsageError
from tvmq.sample_program import SampleProgram

SAMPLES = 3
X = np.concatenate([tiny_program.an_input(seed) for seed in range(SAMPLES)])


@pytest.fixture(scope="module")
def program() -> SampleProgram:
    return SampleProgram(tiny_program.built().for_samples(SAMPLES))


@pytest.mark.parametrize("threads", sorted({1, min(2, len(allowed_cpus()))}))
def test_main_and_trace_compute_every_sample(program: SampleProgram, threads: int) -> None:
    program.set_threads(threads)
    for x in (X, np.asfortranarray(X), np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape)):
        y, again = program.run(x)
        np.testing.assert_array_equal(y, tiny_program.expected(X))
        np.testing.assert_array_equal(again, X.ravel())
        assert not np.may_share_memory(again, x)
    product, total = program.trace(X)
    np.testing.assert_array_equal(total, tiny_program.expected(X))
    np.testing.assert_array_equal(total - product, np.broadcast_to(tiny_program.weights()[1], total.shape))


def test_workers_are_as_many_as_threads_however_these_were_set(program: SampleProgram) -> None:
    for threads in (3, 2, 9):
        program.threads = threads  # as a benchmark does, which puts back what was there before
        assert program._pool()._max_workers == min(threads, SAMPLES)
        assert program._pool() is program._pool()


def test_a_kernel_takes_the_time_of_all_samples_of_a_thread(
    program: SampleProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = (runtime.KernelTime("fc", "matmul", 2.0),)
    monkeypatch.setattr(runtime.Program, "profile", lambda *_, **__: once)
    monkeypatch.setattr(program, "threads", 1)
    assert program.profile(X)[0].us == 6
    monkeypatch.setattr(program, "threads", 2)
    assert program.profile(X)[0].us == 4


def test_threads_are_those_of_this_process(program: SampleProgram) -> None:
    before = program.threads
    with pytest.raises(UsageError, match=r"threads: 0 given"):
        program.set_threads(0)
    assert program.threads == before


def test_a_batch_has_the_bits_of_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 5)
    )
    x = torch.randn(4, 3, 17, 17)
    options = {"calibration": list(torch.randn(6, 4, 3, 17, 17)), "preset": "fast", "threads": 1}
    monkeypatch.setattr(pipeline, "sample_by_sample", lambda *_: True)
    model = tvmq.compile(module, example_inputs=(x,), **options)
    assert model._built.samples == 4
    assert "input float32[4, 3, 17, 17] -> output float32[4, 5]" in repr(model)
    assert model.verify(x).require() is None
    alone = tvmq.compile(module, example_inputs=(x[:1],), **options)
    assert torch.equal(model(x), torch.cat([alone(row[None]) for row in x]))
    macs = [4 * row.macs for row in alone.coverage.rows]
    assert [row.macs for row in model.coverage.rows] == macs
    # A machine that does it sooner at once computes the same, also what a recipe of this one says.
    monkeypatch.setattr(pipeline, "sample_by_sample", lambda *_: False)
    for more in ({}, {"recipe": model.recipe}):
        at_once = tvmq.compile(module, example_inputs=(x,), **(options | more))
        assert at_once._built.samples == 1
        assert [row.macs for row in at_once.coverage.rows] == macs
        assert torch.equal(model(x), at_once(x))
    model.save(tmp_path / "m.tvmq")
    loaded = tvmq.load(tmp_path / "m.tvmq", threads=1)
    assert loaded.verify().ok
    assert loaded.verify(x).ok
    assert torch.equal(loaded(x), model(x))


def test_threads_share_no_copy_of_an_input_that_code_cannot_read_in_place(program: SampleProgram) -> None:
    unaligned = np.frombuffer(bytearray(1 + 4 * SAMPLES), np.float32, offset=1).reshape(SAMPLES, 1)
    assert not unaligned.flags.aligned
    assert all(part.flags.carray for (part,) in program._parts([unaligned]))


def test_workers_have_no_workers_of_their_own_and_may_use_every_cpu(program: SampleProgram) -> None:
    program.threads = SAMPLES
    program.run(X)
    before = len(os.listdir("/proc/self/task"))
    fresh = SampleProgram(tiny_program.built().for_samples(SAMPLES))
    fresh.threads = SAMPLES
    fresh.run(X)
    assert 1 <= len(os.listdir("/proc/self/task")) - before <= SAMPLES
    found = fresh._pool().submit(os.sched_getaffinity, 0).result()
    assert found == os.sched_getaffinity(0)
