"""The rows of scripts/plan.json, and the table made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import BY_NAME, CASES
from rows_file import load_rows, save_rows

from tvmq.evaluation import Comparison
from tvmq.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Record):
    """One plan on the bed."""

    name: str  # of its case
    key: str  # of all that it depends on
    images: int
    preset: str
    bytes: int  # of the artifact
    seconds: float  # of the whole compilation, search included
    comparison: Comparison
    ms: float | None = None  # predicted, of a call; None where nothing was planned
    threads: int
    evaluations: int = 0
    metric: str = ""
    compared: float | None = None  # the metric when plans were compared
    made: float | None = None  # and of what was made
    bits: dict[str, int]  # groups by precision
    cpu: str


def load(path: Path) -> dict[str, Row]:
    """Return the rows of a file by name."""
    return {row.name: row for row in load_rows(path, Row) if row.name in BY_NAME}


def save(path: Path, rows: dict[str, Row]) -> None:
    """Write the rows in the table's order."""
    save_rows(path, [rows[case.name] for case in CASES if case.name in rows])


def markdown(rows: Sequence[Row]) -> str:
    """Return the table and what it is of."""
    lines = [
        "| ViT-S, CIFAR-10 probe | file, MB | predicted, ms | drop in points [95 %] | agreement | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        c = row.comparison
        drop = f"{c.drop:.2f} [{c.low:.2f}, {c.high:.2f}]"
        ms = "" if row.ms is None else f"{row.ms:.2f}"
        numbers = f"{drop} | {c.agreement:.1f} % | {row.seconds / 60:.1f}"
        lines.append(f"| {row.name} | {row.bytes / 1e6:.2f} | {ms} | {numbers} |")
    threads = "1 thread" if rows[0].threads == 1 else f"{rows[0].threads} threads"
    images = " or ".join(f"{count:,}" for count in sorted({row.images for row in rows}))
    preset = " or ".join(sorted({row.preset for row in rows}))
    about = f"{images} test images, preset {preset}; agreement is with float"
    return "\n".join([*lines, "", f"{rows[0].cpu}, {threads}; {about}."])
