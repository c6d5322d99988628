"""Measure tvmq and its rivals in turns; scripts/bench.sh calls this.

Wants an idle machine. Results go to scripts/benchmarks.json, where those of other models and numbers of
threads stay, and from there into README.md. --smoke checks the whole path in a minute with one small model
and ONNX Runtime, and leaves both files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rows as results
import turns
from closeness import cosine
from models import MODELS, SMOKE
from parts import ROOT, NotMeasuredError
from prepare import ENGINES, Peak, Store, nbytes, peaks
from readme import put
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rows import Row

from tvmq import report
from tvmq.bench import Timing
from tvmq.environment import allowed_cpus, cpu_name
from tvmq.errors import UsageError

RESULTS = ROOT / "scripts" / "benchmarks.json"
SMOKE_RESULTS = ROOT / "out" / "bench" / "smoke.json"
ROUNDS, SMOKE_ROUNDS = 30, 3
BUSY = 0.5  # load at the start, in cores, above which the numbers are not worth keeping
FIXED_MACS = 2e9  # a turn's fixed cost, in the multiply-accumulates that take as long


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    models: tuple[str, ...]
    threads: tuple[int, ...]
    engines: tuple[str, ...]
    rounds: int
    starts: int
    store: Store
    results: Path


@dataclass(frozen=True)
class Prepared:
    """What one model is measured with."""

    files: Mapping[str, Path | NotMeasuredError]  # by engine
    inputs: Path | None = None  # None, like macs, where the model could not even be exported
    macs: int | None = None  # of one run


def parse(arguments: Sequence[str]) -> Plan:
    """Return the plan that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one small model, few rounds, no downloads")
    parser.add_argument("--models", default="", help=f"comma-separated, of {', '.join(MODELS)}; default: all")
    parser.add_argument("--threads", help="comma-separated; default: 1,2")
    parser.add_argument("--rounds", type=int, help=f"turns of each engine; default: {ROUNDS}")
    given = parser.parse_args(arguments)
    known = SMOKE if given.smoke else MODELS
    models = tuple(given.models.split(",")) if given.models else tuple(known)
    if unknown := set(models) - set(known):
        parser.error(f"{', '.join(sorted(unknown))} given, of {', '.join(known)} is wanted")
    available = len(allowed_cpus())
    words = [str(n) for n in (1, 2) if n <= available] if given.threads is None else given.threads.split(",")
    if not all(word.isdigit() and 1 <= int(word) <= available for word in words):
        parser.error(
            f"--threads {given.threads} given, 1 to {available} is wanted (the CPUs of this process)"
        )
    threads = tuple(dict.fromkeys(map(int, words)))
    rounds = (SMOKE_ROUNDS if given.smoke else ROUNDS) if given.rounds is None else given.rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds} given, at least 1 is wanted")
    if given.smoke:
        store = Store(ROOT / "out" / "bench" / "smoke", smoke=True)
        return Plan(
            models, threads, ("tvmq", "onnxruntime-int8", "onnxruntime"), rounds, 1, store, SMOKE_RESULTS
        )
    store = Store(ROOT / "out" / "bench", smoke=False)
    return Plan(models, threads, tuple(ENGINES), rounds, turns.STARTS, store, RESULTS)


def prepare(plan: Plan, progress: Progress) -> dict[str, Prepared]:
    """Return what every model is measured with, made now if it is not there yet."""
    found = {}
    task = progress.add_task("prepare", total=len(plan.models) * len(plan.engines))
    for model in plan.models:
        progress.update(task, description=f"prepare {model}")
        try:
            source = plan.store.source(model)
        except NotMeasuredError as failed:
            found[model] = Prepared(dict.fromkeys(plan.engines, failed))
            progress.advance(task, len(plan.engines))
            continue
        files = {}
        for engine in plan.engines:
            progress.update(task, description=f"prepare {model}, {ENGINES[engine].title}")
            files[engine] = prepared(plan, engine, model)
            progress.advance(task)
        about = json.loads((source / "about.json").read_text(encoding="utf-8"))
        found[model] = Prepared(files, source / "input.npz", int(about["macs"]))
    progress.update(task, description="prepared")
    return found


def prepared(plan: Plan, engine: str, model: str) -> Path | NotMeasuredError:
    """Return the file that an engine runs, or why there is none."""
    try:
        plan.store.python(engine)
        return plan.store.model(engine, model)
    except NotMeasuredError as failed:
        return failed


def measure(plan: Plan, models: Mapping[str, Prepared], progress: Progress) -> None:
    """Measure model after model, and write each one's rows as soon as they are there."""
    work = {(m, n): FIXED_MACS + (models[m].macs or 0) / n for m in plan.models for n in plan.threads}
    task = progress.add_task("measure", total=sum(work.values()))
    steps = len(plan.engines) * (plan.rounds + plan.starts + 1)
    passed = 0.0
    for (model, threads), share in work.items():
        progress.update(task, description=f"measure {model}, {threads} thread{'s' * (threads > 1)}")
        done = partial(progress.advance, task, share / steps)
        results.save(plan.results, measured(plan, model, threads, models[model], done))
        passed += share
        progress.update(task, completed=passed)
    progress.update(task, description="measured")


def measured(plan: Plan, model: str, threads: int, prepared: Prepared, done: Callable[[], None]) -> list[Row]:
    """Return the rows of one model on so many threads, one per engine."""
    jobs = {
        engine: turns.Job(plan.store.python(engine), ENGINES[engine].runtime, path, prepared.inputs, threads)
        for engine, path in prepared.files.items()
        if isinstance(path, Path) and prepared.inputs
    }
    found = turns.measure(jobs, plan.rounds, plan.starts, done)
    found |= {engine: path for engine, path in prepared.files.items() if isinstance(path, NotMeasuredError)}
    exact = found.get("onnxruntime")
    answer = exact.answer if isinstance(exact, turns.Measured) else None
    rows = []
    for engine, seen in found.items():
        row = empty_row(plan, model, threads, engine, prepared.macs)
        if isinstance(seen, NotMeasuredError):
            rows.append(replace(row, reason=str(seen)))
        else:
            rows.append(filled(row, seen, nbytes(jobs[engine].model), answer))
    return results.compared(rows)


def empty_row(plan: Plan, model: str, threads: int, engine: str, macs: int | None) -> Row:
    """Return what is known of a row before it is measured."""
    int8, fp32 = peaks()["int8"], peaks()["fp32"]
    return Row(
        model=model,
        threads=threads,
        engine=engine,
        integer=ENGINES[engine].integer,
        rounds=plan.rounds,
        macs=macs,
        peak_instructions=int8.instructions,
        peak_gmacs=int8.gmacs,
        fp32_peak_gmacs=fp32.gmacs,
        floor_ms=None if macs is None else floor_ms(macs, threads, int8),
        settings={},
        versions={},
        cpu=cpu_name(),
    )


def floor_ms(macs: int, threads: int, peak: Peak) -> float:
    """Return the time below which no engine can come: all multiplications at the peak of that many cores."""
    return macs / (threads * peak.gmacs * 1e6)


def filled(row: Row, seen: turns.Measured, size: int, answer: np.ndarray[Any, Any] | None) -> Row:
    """Return the row with what was seen."""
    timing = Timing.of_seconds(seen.seconds)
    return replace(
        row,
        timing=timing,
        percent_of_peak=None if row.floor_ms is None else 100 * row.floor_ms / timing.median_ms,
        cosine=None if answer is None else cosine(seen.answer, answer),
        peak_memory_mb=seen.peak_mb,
        file_mb=size / 1e6,
        cold_start_ms=seen.cold_start_ms,
        settings=seen.settings,
        versions=seen.versions,
    )


def main(arguments: Sequence[str]) -> int:
    """Prepare, measure, show, and renew README.md."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process stays behind
    plan = parse(arguments)
    try:
        results.load(plan.results)
    except UsageError as unfit:  # now, not when the first model has been measured
        raise SystemExit(f"bench: {unfit}") from None
    console = Console(markup=False)
    wide = console if console.is_terminal else Console(width=160, markup=False)
    load = os.getloadavg()[0]
    if load > BUSY:
        console.print(f"The machine is busy (load {load:.1f}): these numbers will be worse than it can do.")
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    stderr = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description:<44}"), *columns, console=stderr) as progress:
        peaks()
        measure(plan, prepare(plan, progress), progress)
    rows = results.load(plan.results)
    mine = [row for row in rows if row.model in plan.models and row.threads in plan.threads]
    for threads in plan.threads:
        wide.print(
            report.comparison("Median latency, measured in turns", *results.latency_table(mine, threads))
        )
    if 1 in plan.threads:
        wide.print(report.comparison("Size and start", *results.footprint_table(mine)))
    for note in results.notes(mine):
        console.print(note)
    if not plan.store.smoke:
        put(ROOT / "README.md", "scripts/bench.sh", results.markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
