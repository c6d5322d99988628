"""The results on GPUs: one row per model, batch and engine; the file they are kept in, and the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_models import TITLES
from rows import markdown_table, number
from rows_file import load_rows, save_rows

from tvmq.bench import Timing
from tvmq.record import Record

OURS, HALF, EAGER = "tvmq", "torch.compile-float16", "torch-float32"
ENGINES = {
    OURS: "tvmq, int8",
    HALF: "torch.compile, float16",
    "torch.compile-float32": "torch.compile, float32",
    EAGER: "torch, float32",
}
NOT_MEASURED = "Not measured; `bash scripts/gpu_bench.sh` does that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Record):
    """One engine on one model; what could not be measured is None, and reason says why."""

    model: str
    batch: int
    engine: str
    gpu: str
    reason: str | None = None
    timing: Timing | None = None  # inputs and outputs in the GPU's memory
    call: Timing | None = None  # from and to the CPU's memory
    rounds: int
    macs: int
    peak_gmacs: float | None = None  # measured there
    percent_of_peak: float | None = None
    exact: str | None = None  # what of it equals the reference bit for bit
    cosine: float | None = None  # of the output to float's
    settings: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Return what a later measurement replaces."""
        return self.gpu, self.model, self.batch, self.engine


def merged(path: Path, new: Iterable[Row]) -> list[Row]:
    """Write the new rows and those of the file that they do not replace; return all, in the tables' order."""
    found = {row.key: row for row in (*load_rows(path, Row), *new)}
    models, engines = list(TITLES), list(ENGINES)
    rows = sorted(
        found.values(),
        key=lambda r: (r.gpu, r.batch, models.index(r.model), engines.index(r.engine)),
    )
    save_rows(path, rows)
    return rows


def latencies(rows: Sequence[Row], gpu: str, batch: int) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of one batch."""
    head = [f"{gpu}, batch {batch}: ms (p10, p90)", *ENGINES.values()]
    head += ["of peak", "times float16", "times float32", "equal to the reference"]
    lines = []
    for model in TITLES:
        found = {r.engine: r for r in rows if (r.gpu, r.batch, r.model) == (gpu, batch, model)}
        if not found:
            continue
        ours = found.get(OURS)
        cells = [TITLES[model], *(latency(found.get(name)) for name in ENGINES)]
        cells += [number(ours and ours.percent_of_peak, "{:.0f} %")]
        cells += [number(times(ours, found.get(name)), "{:.2f}") for name in (HALF, EAGER)]
        lines.append([*cells, (ours and ours.exact) or "-"])
    return head, lines


def times(ours: Row | None, rival: Row | None) -> float | None:
    """Return how many times as fast as a rival tvmq is."""
    if ours is None or rival is None or not ours.timing or not rival.timing:
        return None
    return rival.timing.median_ms / ours.timing.median_ms


def latency(row: Row | None) -> str:
    """Return the median and the spread, or that there is none."""
    if row is None:
        return "-"
    if row.timing is None:
        return "not measured"
    return f"{row.timing.median_ms:.3f} ({row.timing.p10_ms:.3f}, {row.timing.p90_ms:.3f})"


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the sentences under the tables: peaks, versions, settings, what failed and why."""
    said = {
        f"{row.gpu}: peak {row.peak_gmacs / 1e3:.0f} TMAC/s in int8, measured."
        for row in rows
        if row.peak_gmacs
    }
    found = sorted(said)
    versions = {f"{name} {value}" for row in rows for name, value in row.versions.items()}
    found += [f"{', '.join(sorted(versions))}."] if versions else []
    found += sorted({f"{ENGINES[r.engine]}: {n} {v}." for r in rows for n, v in r.settings.items()})
    for row in rows:
        if row.reason:
            found.append(f"{TITLES[row.model]}, batch {row.batch}, {ENGINES[row.engine]}: {row.reason}")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return all tables for README.md."""
    if not rows:
        return NOT_MEASURED
    places = dict.fromkeys((row.gpu, row.batch) for row in rows)
    tables = [markdown_table(*latencies(rows, *place)) for place in places]
    return "\n\n".join([*tables, "\n".join(notes(rows))])
