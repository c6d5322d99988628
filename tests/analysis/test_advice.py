"""What would help follows from the evidence, fault by fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvmq.analysis.advice import Evidence, advice
from tvmq.analysis.records import Closeness, Spread

FINE = Spread(
    tensor="x", dtype="uint8", low=-1.0, high=1.0, minimum=-1.0, maximum=1.0, edges=(-1.0, 1.0),
    counts=(1, 2), outliers=1.4, clipped=0.0, clipping=0.0, move=0.01,
)  # fmt: skip
SOUND = Evidence(
    together=Closeness(38.0, 0.9999), alone=Closeness(39.0, 0.9999), weights_db=42.0, inputs_db=42.0,
    reads=FINE, gives=FINE, channels_before=(1.0, 1.0, 2.0), channels_after=(1.0, 1.0, 2.0),
    upstream="a",
)  # fmt: skip
WIDE = (100.0, 1.0, 1.0, 1.0)


def test_a_sound_site_needs_no_help():
    assert advice(SOUND) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights_db": 12.0}, "its weights dominate (12 dB alone, its inputs 42 dB)"),
        (
            {"channels_after": WIDE, "channels_before": WIDE},
            "balancing does not reach it: `ignored` keeps it in float",
        ),
        ({"channels_after": WIDE, "channels_before": (900.0, 1.0, 1.0)}, "(before balancing 900 times)"),
        ({"reads": replace(FINE, outliers=9.0)}, "9 times the 99.9th percentile: try observer percentile"),
        ({"reads": replace(FINE, clipped=0.02, clipping=0.8)}, "clipping 2 % of what it reads makes 80 %"),
        ({"gives": replace(FINE, move=0.3)}, "the scale of what it gives would move by 30 %"),
        ({"gives": replace(FINE, dtype="int16", clipped=0.001)}, "the residual trunk is clipped (0.1 %"),
        ({"together": Closeness(20.0, 0.99)}, "19 dB of its error come with its inputs: look at a"),
        ({"alone": Closeness(15.0, 0.98), "together": Closeness(15.0, 0.98)}, "nothing stands out"),
    ],
)
def test_each_fault_is_told_from_its_evidence(change: dict[str, object], said: str):
    assert said in advice(replace(SOUND, **change))


def test_what_matters_little_is_not_told():
    cut = replace(FINE, clipped=0.1, clipping=0.9)
    assert advice(replace(SOUND, reads=replace(FINE, outliers=9.0, maximum=9.0))) == ""
    by_weights = replace(SOUND, weights_db=12.0, reads=replace(FINE, outliers=9.0))
    assert "percentile" not in advice(by_weights)
    assert advice(replace(SOUND, alone=Closeness(60.0, 1.0), together=Closeness(58.0, 1.0), reads=cut)) == ""
