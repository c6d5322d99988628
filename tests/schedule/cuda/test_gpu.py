"""A profile as the choice of tiles sees it."""

from __future__ import annotations

from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.target import load_profile


def test_profiles_of_gpus_have_processors_and_shared_memory():
    orin = GpuModel.of(load_profile("jetson-orin"))
    assert orin is not None
    assert (orin.capability, orin.processors, orin.shared_bytes) == ((8, 7), 16, 163 << 10)
    assert (orin.tensor_cores, orin.async_copies) == (True, True)
    turing, volta = GpuModel.of(load_profile("t4")), GpuModel.of(load_profile("jetson-xavier"))
    assert turing is not None
    assert volta is not None
    assert (turing.tensor_cores, turing.async_copies, volta.tensor_cores) == (True, False, False)
    assert GpuModel.of(load_profile("x86_avx2")) is None
