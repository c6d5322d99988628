"""Progress as a person sees it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tvmq import report
from tvmq.cli_output import StageDisplay, show


def displayed(*, terminal: bool) -> str:
    times = iter([0.0, 1.5, 1.5, 4.0])
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100)
    with StageDisplay(console, now=lambda: next(times, 9.0)) as display:
        display("import", 0, 1)
        display("calibrate", 0, 20)
        display("calibrate", 7, 20)
    return written.getvalue()


def test_a_file_gets_one_line_for_each_finished_stage():
    assert displayed(terminal=False) == "import 1.5 s\ncalibrate 2.5 s\n"


def test_a_file_tells_which_stage_has_begun(capsys: pytest.CaptureFixture[str]):
    with StageDisplay() as display:
        display("calibrate", 0, 20)
        assert capsys.readouterr().err == "calibrate"


def test_a_terminal_gets_bars_that_end_full():
    final = displayed(terminal=True).splitlines()
    assert any("calibrate" in line and "20/20" in line and "left" in line for line in final)


def test_a_stage_that_failed_is_not_shown_as_finished(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        with StageDisplay() as display:
            display("import", 0, 1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert capsys.readouterr().err == "import\n"


def test_a_name_that_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]):
    show({}, report.facts("[/blue]", {"name": "[red]"}), as_json=False)
    out = capsys.readouterr().out
    assert "[/blue]" in out
    assert "[red]" in out
