"""The analyze command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

import tvmq
from tvmq.cli_compile import Data, calibration_warnings, check_paths, opened_model
from tvmq.cli_output import StageDisplay, show
from tvmq.images import load_calibration

if TYPE_CHECKING:
    from tvmq.analysis.records import Analysis


def analyze_model(
    path: Path,
    data: Data,
    held_out: str,
    html: Path | None,
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> int:
    """Analyse the model at path; options go to tvmq.analyze."""
    check_paths(path, html)
    preprocessing = data.preprocessing()
    with StageDisplay() as display, calibration_warnings(display):
        display("start", 0, 1)  # seconds, for the compiler's packages
        opened = opened_model(path, data.batch, display)
        calibration, others = (
            load_calibration(where, opened.inputs, preprocessing=preprocessing, limit=data.samples)
            if where
            else None
            for where in (data.path, held_out)
        )
        found: Analysis = tvmq.analyze(
            opened.model,
            example_inputs=opened.examples(),
            calibration=calibration,
            held_out=others or None,
            progress=display,
            **options,
        )
    from tvmq.analysis import terminal

    written = []
    if html is not None:
        found.save_html(html)
        written = [Text(f"Plots of all {len(found.sites)} sites: {html}")]
    show(found.to_json(), terminal.bars(found), *written, as_json=as_json)
    return 0
