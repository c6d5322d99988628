"""Measure how accurate tvmq and its rivals are; scripts/accuracy.sh calls this.

Every cell is measured in a process of its own and written to scripts/accuracy.json at once: what is there and
still holds is skipped, so the script may be ended and started again. The table goes into README.md. --smoke
checks the whole path in a minute with a net of noise, and leaves both files alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import results
from beds import RECIPES, SMOKE, Bed, load
from cells import ABLATIONS, FLOAT, OURS, RIVALS, Cell, cells_of
from data import CACHE, NoDataError
from parts import RIVALS as RIVALS_LIST
from parts import ROOT, TESTED, NotMeasuredError, environment, key, reason_in, rivals_python
from readme import put
from results import Row
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tvmq import report
from tvmq.environment import cpu_name
from tvmq.evaluation import compare

HERE = Path(__file__).parent
RESULTS = ROOT / "scripts" / "accuracy.json"
# What tvmq's numbers depend on; kernels compute the same bits whatever is done to them.
NUMBERS = ("frontend", "passes", "calibrate", "plan", "quantize")
NUMBERS_TOO = (
    "formats",
    "numerics",
    "one_thread",
    "pipeline",
    "quantizer",
    "reference",
    "reference_layers",
    "reference_ops",
    "spec",
    "unary",
)


@dataclass(frozen=True)
class Request:
    """What to measure."""

    beds: tuple[str, ...]
    columns: tuple[str, ...]  # none: all
    cache: Path
    threads: int
    smoke: bool

    @property
    def results(self) -> Path:
        """Return the file of the rows."""
        return self.cache / "smoke.json" if self.smoke else RESULTS

    def cells(self, bed: str) -> list[Cell]:
        """Return the cells of a bed, float first."""
        if self.smoke:
            return [FLOAT, *OURS[:2]]  # 8 and 4 bits: each cell takes seconds, of which the test has few
        known = cells_of((RECIPES | SMOKE)[bed].transformer)
        return [c for c in known if c is FLOAT or not self.columns or c.column in self.columns]


def parse(arguments: Sequence[str]) -> Request:
    """Return what the arguments ask for."""
    columns = list(dict.fromkeys(cell.column for cell in (*OURS, *ABLATIONS, *RIVALS)))
    parser = argparse.ArgumentParser(prog="scripts/accuracy.sh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a net of noise and tvmq only, no downloads")
    parser.add_argument("--beds", default="", help=f"comma-separated, of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--columns", help=f"may be repeated, of {columns}; default: all", action="append")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"data and models; default: {CACHE}")
    parser.add_argument("--threads", type=int, default=1, help="of each process; default: 1")
    given = parser.parse_args(arguments)
    known = SMOKE if given.smoke else RECIPES
    beds = tuple(given.beds.split(",")) if given.beds else tuple(known)
    if unknown := set(beds) - set(known):
        parser.error(f"{', '.join(sorted(unknown))} given, of {', '.join(known)} is wanted")
    if unknown := set(given.columns or ()) - set(columns):
        parser.error(f"--columns {', '.join(sorted(unknown))} given, of {columns} is wanted")
    return Request(beds, tuple(given.columns or ()), given.cache.resolve(), given.threads, given.smoke)


def measure(request: Request, progress: Progress) -> dict[str, str]:
    """Measure every cell that is not there yet; return why beds could not be made, by name."""
    work = [(name, cell) for name in request.beds for cell in request.cells(name)]
    task = progress.add_task("", total=len(work))
    missing: dict[str, str] = {}
    for name, cell in work:
        words = (name, cell.column, cell.precision, cell.setting)
        progress.update(task, description=" ".join(filter(None, words)))
        if name in missing:
            progress.advance(task)
            continue
        try:
            bed = load(name, request.cache)
        except NoDataError as error:
            missing[name] = str(error)
            continue
        made = cell_key(bed, cell)
        rows = {row.place: row for row in results.load(request.results)}
        known = rows.get((name, cell.column, cell.precision, cell.setting))
        if not known or known.key != made or (cell is FLOAT and not float_scores(bed, made).exists()):
            results.save(request.results, [measured(bed, cell, made, request)])
        progress.advance(task)
    return missing


def measured(bed: Bed, cell: Cell, made: str, request: Request) -> Row:
    """Return the row of one cell, measured in a child process."""
    folder = request.cache / "cells" / f"{bed.name}.{made}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    row = {
        "bed": bed.name,
        "column": cell.column,
        "precision": cell.precision,
        "setting": cell.setting,
        "key": made,
        "options": json.dumps(dict(cell.options)),
        "images": len(bed.labels),
        "cpu": cpu_name(),
    }
    try:
        about = child(bed, cell, folder, request)
    except NotMeasuredError as failed:
        return Row(**row, reason=str(failed), versions={})
    else:
        scores = np.load(folder / "scores.npy")
    finally:
        shutil.rmtree(folder)
    exact = float_scores(bed, cell_key(bed, FLOAT))
    if cell is FLOAT:
        np.save(exact, scores)
    about["float_sites"] = tuple(about.get("float_sites", ()))
    return Row(**row, comparison=compare(scores, np.load(exact), bed.labels), **about)


def child(bed: Bed, cell: Cell, folder: Path, request: Request) -> dict[str, object]:
    """Run child.py and return its about.json."""
    python = sys.executable if cell.engine == "tvmq" or cell is FLOAT else rivals_python()
    arguments = [
        request.cache,
        bed.name,
        cell.engine,
        json.dumps(dict(cell.options)),
        request.threads,
        folder,
    ]
    done = subprocess.run(
        [str(word) for word in (python, HERE / "child.py", *arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
    )
    if done.returncode:
        raise NotMeasuredError(reason_in(done.stderr) or f"exit code {done.returncode}")
    found: dict[str, object] = json.loads((folder / "about.json").read_text("utf-8"))
    return found


def float_scores(bed: Bed, made: str) -> Path:
    """Return where the float model's scores are kept."""
    return bed.folder / f"float.{made}.npy"


def cell_key(bed: Bed, cell: Cell) -> str:
    """Return a name for all that a cell's numbers depend on."""
    if cell.engine == "tvmq":
        return key((), [model_key(bed), numbers_key(), json.dumps(dict(cell.options))])
    files = [] if cell is FLOAT else [RIVALS_LIST, TESTED, HERE / "rivals.py"]
    return key(files, [model_key(bed), cell.engine, json.dumps(dict(cell.options))])


@cache
def numbers_key() -> str:
    """Return a name for the part of tvmq's source that decides what is computed."""
    folders = [path for name in NUMBERS for path in (ROOT / "tvmq" / name).rglob("*.py")]
    return key(sorted([*folders, *(ROOT / "tvmq" / f"{name}.py" for name in NUMBERS_TOO), HERE / "child.py"]))


def model_key(bed: Bed) -> str:
    """Return a name for a bed's model and inputs."""
    return _model_key(bed.folder)


@cache
def _model_key(folder: Path) -> str:
    names = ("model.onnx", "calibration.npz", "labels.npy")
    return key([*(folder / name for name in names), *sorted(folder.glob("test_*.npy"))])


def main(arguments: Sequence[str]) -> int:
    """Measure, show, and renew README.md."""
    request = parse(arguments)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    stderr = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description:<60}"), *columns, console=stderr) as progress:
        missing = measure(request, progress)
    rows = results.load(request.results)
    wide = Console(width=200, markup=False)
    mine = [row for row in rows if row.bed in request.beds]
    if mine:
        wide.print(report.comparison("Every setting", *results.settings_table(mine)))
        wide.print(report.comparison("Drop against float, best setting", *results.drop_table(mine)))
        for note in results.notes(mine):
            wide.print(note)
    if not request.smoke:
        put(ROOT / "README.md", "scripts/accuracy.sh", results.markdown(rows))
    for name, why in missing.items():
        print(f"accuracy: {name} is left out: {why}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
