from dataclasses import replace

import pytest

from tvmq.cost.roofline import bandwidths, constants_from, level_of, macs_per_cycle, roofline_us
from tvmq.target import load_profile

VBMI, PLAIN = load_profile("x86_avx512_vbmi"), load_profile("x86_avx512_vnni")
SIZES = {
    "macs": 0.0, "constant_bytes": 0.0, "input_bytes": 0.0, "output_bytes": 0.0, "elements": 1.0,
    "integer": 1.0, "threads": 1.0,
}  # fmt: skip


def test_a_large_product_takes_what_its_multiplications_take_at_the_peak():
    found = SIZES | {"macs": 234.9e6, "constant_bytes": 1e5}
    assert roofline_us(found, VBMI, "l3") == pytest.approx(1000, rel=0.01)
    assert roofline_us(found | {"threads": 2.0}, VBMI, "l3") == pytest.approx(500, rel=0.01)
    assert roofline_us(found | {"integer": 0.0}, VBMI, "l3") == pytest.approx(4000, rel=0.01)
    assert macs_per_cycle(VBMI, integer=True) == 4 * macs_per_cycle(VBMI, integer=False)


def test_one_row_takes_what_its_weights_take_from_where_they_are():
    found = SIZES | {"macs": 1e6, "constant_bytes": 22e6}
    assert roofline_us(found, VBMI, "dram") == pytest.approx(1000, rel=0.01)
    assert roofline_us(found, VBMI, "l3") == pytest.approx(22e6 / 99e3, rel=0.01)
    assert roofline_us(found | {"threads": 2.0}, VBMI, "dram") == pytest.approx(1000, rel=0.01)


def test_what_a_profile_leaves_out_is_faster_than_what_lies_behind():
    rates = bandwidths(PLAIN.machine)
    assert rates["l1"] > rates["l2"] > rates["l3"] > rates["dram"] == PLAIN.machine.dram_gb_per_s
    assert bandwidths(VBMI.machine)["l2"] == 112.0
    small = replace(VBMI.machine, l3_bytes=1 << 22)
    assert (constants_from(1e7, VBMI.machine), constants_from(1e7, small)) == ("l3", "dram")
    assert [level_of(size, VBMI.machine) for size in (1e4, 1e6, 1e7, 1e9)] == ["l1", "l2", "l3", "dram"]


def test_a_gpu_computes_on_all_its_processors_however_many_threads_the_cpu_has():
    h100 = load_profile("h100")
    found = SIZES | {"macs": 132 * 1.83e3 * 4096 * 50.0}
    assert roofline_us(found, h100, "l3") == pytest.approx(50)
    assert roofline_us(found | {"threads": 16.0}, h100, "l3") == pytest.approx(50)
    moved = {"input_bytes": 335e6, "output_bytes": 335e6}
    assert roofline_us(SIZES | moved, h100, "l3") == pytest.approx(200)  # 3350 GB/s
    assert roofline_us(SIZES, h100, "l3") == 2.0
