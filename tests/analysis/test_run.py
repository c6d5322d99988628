"""An analysis of whole models, by call and by command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tvmq
from tests import tiny_transformer
from tests.analysis.nets import WIDTH, samples, site, transformer, two
from tvmq.analysis.page import render
from tvmq.cli import main
from tvmq.errors import CalibrationError, UsageError


def test_every_site_of_a_transformer_is_measured():
    found = transformer()
    assert {row.site for row in tiny_transformer.model().coverage.rows} == {each.site for each in found.sites}
    assert [each.site for each in found.sites if not each.integer] == []
    assert [(s.site, s.alone) for s in found.sites if not 10 < s.alone.sqnr_db < 60] == []
    better = [(s.site, s.alone, s.together) for s in found.sites if s.alone.sqnr_db < s.together.sqnr_db - 1]
    assert better == []
    assert (found.samples, found.held_out, found.calibration_samples, found.findings) == (3, True, 4, ())


def test_ignored_sites_are_shown_as_float():
    found = tvmq.analyze(
        two(), example_inputs=(torch.zeros(1, 20, WIDTH),), calibration=samples(), ignored="second"
    )
    second = site(found, "second")
    assert (second.integer, second.alone, second.advice) == (False, None, "")
    assert found.worst_first[-1] == second
    assert "second" in render(found)


def test_refusals_are_sentences():
    with pytest.raises(CalibrationError, match="calibration: none given"):
        tvmq.analyze(two(), example_inputs=(torch.zeros(1, 20, WIDTH),))
    with pytest.raises(UsageError, match="observer='magic' is unknown"):
        tvmq.analyze(two(), calibration=samples(), observer="magic")


def test_the_command_prints_bars_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.export.save(torch.export.export(two(), (torch.zeros(1, 20, WIDTH),)), tmp_path / "two.pt2")
    repeated = np.concatenate([*samples(4), *samples(4)])
    np.save(tmp_path / "x.npy", repeated)
    command = ["analyze", str(tmp_path / "two.pt2"), "--calibration", str(tmp_path / "x.npy")]
    assert main([*command, "--html", str(tmp_path / "page.html")]) == 0
    out, err = capsys.readouterr()
    assert "SQNR of each site's output, the worst first" in out
    assert "tvmq: warning: calibration: 4 of 8 samples repeat another one" in err
    assert "first" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main([*command, "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "create it first" in capsys.readouterr().err
