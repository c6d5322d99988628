"""Plots are paths within their box, at the places that the numbers say."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.analysis.test_advice import FINE
from tvmq.analysis import charts
from tvmq.analysis.records import Closeness, SiteError

SITE = SiteError(
    site="a", kind="linear", integer=True, together=Closeness(30.0, 1.0), alone=Closeness(60.0, 1.0),
    weights_db=None, inputs_db=None, reads=None, gives=None, channels_before=(4.0, 1.0, 2.0),
    channels_after=(1.0, 1.0, 2.0), advice="",
)  # fmt: skip


def heights(path: str) -> list[float]:
    return [float(point.split()[1]) for point in re.findall(r"[\d.]+ [\d.]+", path)]


def test_a_histogram_has_a_bar_for_each_filled_bin_and_marks_the_range():
    plot = charts.histogram(replace(FINE, counts=(1, 0, 7), low=-0.5, high=0.5))
    assert plot.path.count("M") == 2
    low, high = plot.marks
    assert 0 < low < charts.WIDTH / 2 < high < charts.WIDTH
    assert low + high == charts.WIDTH
    assert len(charts.histogram(replace(FINE, low=-1e6, high=1.5)).marks) == 1


def test_channels_are_sorted_on_one_logarithmic_scale():
    plot = charts.channels(SITE)
    assert plot is not None
    assert (plot.largest, plot.smallest, plot.channels) == (4.0, 1.0, 3)
    assert heights(plot.before) == [0.0, charts.HEIGHT / 2, charts.HEIGHT]
    assert heights(plot.after) == [charts.HEIGHT / 2, charts.HEIGHT, charts.HEIGHT]
    same = charts.channels(replace(SITE, channels_before=(1.0, 1.0, 2.0)))
    assert same is not None
    assert same.before == ""
    many = charts.channels(replace(SITE, channels_after=tuple(range(1, 2000))))
    assert many is not None
    assert many.after.count("L") == charts.MOST_CHANNELS - 1
    assert charts.channels(replace(SITE, channels_after=())) is None
    assert charts.channels(replace(SITE, channels_after=(0.0, 0.0))) is None


def test_the_overview_has_all_sites_in_order():
    plot = charts.overview([SITE, replace(SITE, alone=None)])
    assert heights(plot.together) == [charts.OVERVIEW_HEIGHT / 2] * 2
    assert plot.alone == ((0.0, 0.0),)
