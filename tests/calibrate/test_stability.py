"""How far scales move with other samples: against scales of data really drawn anew, and when it is told."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.calibrate.findings import Kind
from tvmq.calibrate.histogram import Histogram
from tvmq.calibrate.observers import observer_for
from tvmq.calibrate.stability import GROUPS, Stability, stability


def drawn(rng: np.random.Generator, samples: int, spread: float) -> list[np.ndarray]:
    """Return samples whose sizes differ by e**spread (one standard deviation)."""
    return [rng.standard_normal(2048) * np.exp(spread * rng.standard_normal()) for _ in range(samples)]


def calibration_of(values: dict[str, list[np.ndarray]]) -> Calibration:
    stats = {}
    for name, samples in values.items():
        groups = tuple(
            Histogram.of(np.concatenate(samples[g::GROUPS])) for g in range(min(GROUPS, len(samples)))
        )
        stats[name] = ValueStats(Histogram.of(np.concatenate(samples)), groups=groups)
    count = len(next(iter(values.values())))
    return Calibration(
        module_hash="m", data_hash="d", samples=count, values=MappingProxyType(stats), linear_inputs={}
    )


def stable(samples: int, spread: float, values: int = 10) -> Stability:
    rng = np.random.default_rng(0)
    data = {f"v{i}": drawn(rng, samples, spread) for i in range(values)}
    return stability(calibration_of(data), dict.fromkeys(data, False))


@pytest.mark.parametrize("samples", [8, 32])
def test_the_estimate_is_what_new_draws_show(samples: int):
    rng = np.random.default_rng(1)
    logs = [
        np.log(
            np.ptp(
                observer_for("mse", Histogram.of(np.concatenate(drawn(rng, samples, 0.5)))).range(8, False)
            )
        )
        for _ in range(24)
    ]
    estimated = np.sqrt(np.mean(np.square(np.log1p(list(stable(samples, 0.5).moves.values())))))
    assert 0.5 * np.std(logs) < estimated < 2 * np.std(logs)


def test_samples_that_differ_much_are_too_few_and_more_of_them_are_enough():
    (finding,) = stable(8, 0.5).findings()
    assert finding.kind is Kind.FEW_SAMPLES
    assert finding.numbers["moving"] > 1
    assert finding.numbers["advised"] >= 16
    assert "with these 8 samples" in finding.seen
    assert stable(8, 0.02).findings() == ()


def test_few_values_and_few_numbers_say_nothing():
    assert stable(8, 0.5, values=7).findings() == ()
    tiny = {f"v{i}": drawn(np.random.default_rng(i), 3, 0.5) for i in range(10)}
    assert stability(calibration_of(tiny), dict.fromkeys(tiny, True)).moves == {}


def test_values_that_were_not_dealt_to_groups_are_left_out():
    stats = ValueStats(Histogram.of(np.arange(10000.0)))
    one = Calibration(module_hash="", data_hash="", samples=4, values={"v": stats}, linear_inputs={})
    assert stability(one, {"v": False, "absent": False}).moves == {}
