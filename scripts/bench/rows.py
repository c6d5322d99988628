"""The results: one row per model, number of threads and engine; the file they are kept in, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models import MODELS, SMOKE
from prepare import ENGINES
from rows_file import load_rows, save_rows

from tvmq.bench import Timing
from tvmq.record import Record

RIVALS = [name for name in ENGINES if name != "tvmq"]
TITLES = {name: model.title for name, model in (MODELS | SMOKE).items()}
FOOTPRINT = ("tvmq", "openvino-int8", "onnxruntime-int8", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Record):
    """One engine on one model; what could not be measured is None, and reason says why."""

    model: str
    threads: int
    engine: str
    integer: bool  # quantized to 8 bits
    reason: str | None = None
    timing: Timing | None = None
    rounds: int
    macs: int | None = None  # None: the model could not be exported
    peak_instructions: str
    peak_gmacs: float  # of one core, int8; 10**9 multiply-accumulates a second
    fp32_peak_gmacs: float
    floor_ms: float | None = None  # macs at that peak on all threads
    percent_of_peak: float | None = None
    ratio_to_best_int8: float | None = None  # times faster than the best rival with integers; below 1: slower
    ratio_to_best_float: float | None = None
    cosine: float | None = None  # of the first output to ONNX Runtime's in float
    peak_memory_mb: float | None = None  # of a process that runs only this model
    file_mb: float | None = None
    cold_start_ms: float | None = None  # new process to first answer
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    cpu: str

    @property
    def key(self) -> tuple[str, int, str]:
        """Return what a later measurement replaces."""
        return self.model, self.threads, self.engine


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one model and number of threads with their ratios to the best rivals."""

    def best(integer: bool) -> float | None:
        found = [r.timing.median_ms for r in rows if r.engine in RIVALS and r.timing and r.integer is integer]
        return min(found, default=None)

    def ratio(rival: float | None, row: Row) -> float | None:
        return rival / row.timing.median_ms if rival and row.timing else None

    return [
        replace(r, ratio_to_best_int8=ratio(best(True), r), ratio_to_best_float=ratio(best(False), r))
        for r in rows
    ]


def load(path: Path) -> list[Row]:
    """Return the rows in a file, none if there is no file; UsageError for a file that holds anything else."""
    return load_rows(path, Row)


def save(path: Path, new: Iterable[Row]) -> list[Row]:
    """Write the new rows and those of the file that they do not replace; return all, in the tables' order."""
    merged = {row.key: row for row in (*load(path), *new)}
    models, engines = list(TITLES), list(ENGINES)
    rows = sorted(merged.values(), key=lambda r: (models.index(r.model), r.threads, engines.index(r.engine)))
    save_rows(path, rows)
    return rows


def latency_table(rows: Sequence[Row], threads: int) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of latencies."""
    engines = [name for name in ENGINES if any(row.engine == name for row in rows)]
    head = ["ms, " + ("one thread" if threads == 1 else f"{threads} threads"), "floor"]
    head += [ENGINES[name].title for name in engines] + ["of peak", "times int8", "times float"]
    lines = []
    for model, found in by_model(rows, threads).items():
        ours = found.get("tvmq")
        cells = [TITLES[model], number(next(iter(found.values())).floor_ms, "{:.2f}")]
        cells += [latency(found.get(name)) for name in engines]
        if ours:
            cells += [number(ours.percent_of_peak, "{:.0f} %")]
            cells += [number(r, "{:.2f}") for r in (ours.ratio_to_best_int8, ours.ratio_to_best_float)]
        else:
            cells += ["-"] * 3
        lines.append(cells)
    return head, lines


def footprint_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of sizes and starts, each cell one number per engine."""
    engines = [name for name in FOOTPRINT if any(row.engine == name for row in rows)]
    head = [" / ".join(ENGINES[name].title for name in engines)]
    head += ["file, MB", "memory, MB", "new process to first answer, s"]
    lines = []
    for model, found in by_model(rows, 1).items():

        def cell(value: Callable[[Row], float | None], form: str, found: Mapping[str, Row] = found) -> str:
            known = (found.get(name) for name in engines)
            return " / ".join(number(value(row) if row else None, form) for row in known)

        sizes = [cell(lambda r: r.file_mb, "{:.1f}"), cell(lambda r: r.peak_memory_mb, "{:.0f}")]
        start = cell(lambda r: r.cold_start_ms and r.cold_start_ms / 1e3, "{:.2f}")
        lines.append([TITLES[model], *sizes, start])
    return head, lines


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the sentences under the tables: the machine, the versions, what failed and why."""
    peaks = max(rows, key=lambda row: row.peak_gmacs)
    versions = {name: value for row in rows for name, value in row.versions.items()}
    settings = {(ENGINES[r.engine].title, *item) for r in rows for item in r.settings.items()}
    found = [
        f"{peaks.cpu}; one core's peak is {peaks.peak_gmacs:.0f} GMAC/s in int8 ({peaks.peak_instructions}), "
        f"{peaks.fp32_peak_gmacs:.0f} in fp32. {', '.join(f'{n} {v}' for n, v in sorted(versions.items()))}."
    ]
    found += [f"{title}: {name} {value}." for title, name, value in sorted(settings)]
    for row in rows:
        if row.reason:
            threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
            found.append(f"{TITLES[row.model]}, {ENGINES[row.engine].title}, {threads}: {row.reason}")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return all tables for README.md."""
    threads = sorted({row.threads for row in rows})
    tables = [latency_table(rows, n) for n in threads] + [footprint_table(rows)]
    return "\n\n".join([*(markdown_table(*table) for table in tables), "\n".join(notes(rows))])


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    ruled = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


def by_model(rows: Iterable[Row], threads: int) -> dict[str, dict[str, Row]]:
    """Return the rows of a number of threads, by model and engine."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.threads == threads:
            found.setdefault(row.model, {})[row.engine] = row
    return found


def latency(row: Row | None) -> str:
    """Return the median, or that there is none."""
    if row is None:
        return "-"
    return number(row.timing.median_ms if row.timing else None, "{:.2f}", "failed")


def number(value: float | None, form: str, otherwise: str = "-") -> str:
    """Return a number in this form."""
    return otherwise if value is None else form.format(value)
