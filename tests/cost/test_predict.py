import importlib.util
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.tune.synthetic import HERE
from tvmq.cost.predict import Predictor, held_out, numbers_of, waste_of
from tvmq.cost.roofline import roofline_us
from tvmq.cost.store import Measured
from tvmq.target import load_profile

PROFILE = load_profile("x86_avx512_vbmi")


def sizes(rows: int, inputs: int, outputs: int) -> dict[str, float]:
    return {
        "macs": float(rows * inputs * outputs), "constant_bytes": float(inputs * outputs),
        "input_bytes": float(rows * inputs), "output_bytes": float(rows * outputs), "integer": 1.0,
        "elements": float(rows * max(inputs, outputs)), "threads": 1.0, "from_dram": 0.0, "key0": float(rows),
    }  # fmt: skip


def line(rows: int, inputs: int, outputs: int) -> Measured:
    found = sizes(rows, inputs, outputs)
    waste = 1.2 if rows % 6 == 0 else 1.8  # tiles of 6 rows
    us = waste * roofline_us(found, PROFILE, "l3")
    return Measured(f"{rows} {inputs} {outputs}", HERE, "linear", us, 0.0, 9, found, False)


LINES = [line(r, i, o) for r in (6, 7, 49, 96, 197, 198) for i in (64, 192, 384) for o in (64, 384, 1536)]


def test_held_out_kernels_are_predicted_within_the_aim():
    found = held_out(LINES, PROFILE)
    assert found is not None
    assert found.kernels == len(LINES)
    assert (found.median < 0.1, found.p90 < 0.25) == (True, True)
    assert "54 held-out kernels" in str(found)
    loops = [replace(each, family="loops") for each in LINES]
    both = held_out([*LINES, *(replace(each, cost=f"{each.cost} loops") for each in loops)], PROFILE)
    assert both is not None
    assert both.kinds.keys() == {"linear", "loops"}
    assert both.kinds["linear"] == (found.median, found.p90)
    assert "(linear " in str(both)


def test_a_held_out_kernel_is_held_out_in_all_its_variants_and_crowded_lines_say_nothing():
    # Times that nothing explains, so that only a line of the same kernel could tell.
    random = np.random.default_rng(0)
    twins = []
    for each in LINES:
        us = each.us * float(np.exp(random.normal()))
        ends = ("constants from dram", "constants from l3", "{'rows': 6} constants from l3")
        twins += [replace(each, cost=f"{each.cost} {end}", us=us) for end in ends]
    found = held_out(twins, PROFILE)
    assert found is not None
    assert found.kernels == len(twins)
    assert found.median > 0.3
    noisy = [
        replace(each, cost=f"{each.cost} {i}", us=50 * each.us, crowded=True) for i, each in enumerate(LINES)
    ]
    assert held_out([*LINES, *noisy], PROFILE) == held_out(LINES, PROFILE)


def test_features_have_names_that_what_is_missing_does_not_move():
    @dataclass
    class Spec:
        rows: int
        low: int | None
        outputs: int
        out_dtype: str

    plain, clipped = (numbers_of(("linear", Spec(7, low, 40, "int16"))) for low in (None, 3))
    assert plain == {"1.rows": 7.0, "1.outputs": 40.0, "1.out_dtype": 2.0}
    assert clipped == {**plain, "1.low": 3.0}
    assert waste_of(plain, {"chosen.row_tile": 6.0, "chosen.column_tile": 2.0}) == {
        "waste.1.rows": 12 / 7, "waste.1.outputs": 64 / 40,
    }  # fmt: skip


def test_nothing_is_said_of_kinds_of_which_too_little_is_known(monkeypatch: pytest.MonkeyPatch):
    predictor = Predictor(LINES, PROFILE)
    unseen = sizes(198, 192, 1000)
    assert predictor.us("linear", unseen) == pytest.approx(1.2 * roofline_us(unseen, PROFILE, "l3"), rel=0.2)
    assert predictor.us("conv2d", unseen) is None
    assert Predictor(LINES[:7], PROFILE).us("linear", unseen) is None
    assert held_out(LINES[:8], PROFILE) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Predictor(LINES, PROFILE).us("linear", unseen) is None
