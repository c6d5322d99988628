"""What whole models take beside what the cost model says of them; run by scripts/cost.sh.

Every kernel is timed by itself, or found in the store, and their sum is the prediction; then the model is
built from the same integer module and timed as a whole. --sites n lists the n kernels of which the two say
most differently. Needs an idle machine for numbers that mean something.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from parts import ROOT
from prepare import Store

MODELS = "deit_small,swin_tiny,resnet50,mobilenetv2_100"
PRECISIONS = ("w8a8", "w4a8")
TURNS, RUNS = 8, 10  # of the whole model; others may disturb some of the turns
SAMPLES = 4  # that ranges are taken from: no time depends on them


@dataclass(frozen=True)
class Row:
    """One model in one precision on so many threads; times in ms."""

    model: str
    precision: str
    threads: int
    predicted: float
    measured: float  # the middle one of the fastest runs of each turn
    median: float  # of all runs: far above `measured` on a busy machine

    @property
    def error(self) -> float:
        """Return how far the prediction is off, relative to what was measured."""
        return self.predicted / self.measured - 1


def rows_of(model: str, source: Path, threads: int, store: str | None, sites: int) -> Iterator[Row]:
    """Predict and measure a model in this process, whose thread pool is fixed by that."""
    from tvmq.build import build
    from tvmq.cost.model_works import uniform
    from tvmq.cost.predict import held_out
    from tvmq.cost.table import cost_table, open_store
    from tvmq.costing import subject
    from tvmq.quantizer import canonical
    from tvmq.runtime import Program
    from tvmq.spec import Precision
    from tvmq.target import load_profile

    profile = load_profile("native")
    opened = open_store(store, profile, threads, measure=True)
    data = np.load(source / "calibration.npz")
    batches = [tuple(data[name][i : i + 1] for name in data.files) for i in range(SAMPLES)]
    asked = subject(canonical(source / "model.onnx"), batches)
    precisions = [Precision.of(name) for name in PRECISIONS]
    table = cost_table(asked, profile, precisions, opened, threads=threads, progress=said)
    print(held_out(opened.lines, profile) or "too few kernels are known to predict any", file=sys.stderr)
    for precision in precisions:
        plan, _, mod = uniform(asked, precision)
        chosen = {}
        for site in plan.sites:
            name = "float" if site.precision is None else str(site.precision)
            chosen[site.site] = name if (site.site, name) in table.of else "float"
        program = Program(build(mod, profile, threads=threads), threads=threads)
        found = timed(lambda program=program: program.run(*batches[0]))
        if sites:
            compare_sites(table, chosen, program.profile(*batches[0], repeat=40), sites)
        yield Row(model, str(precision), threads, table.ms(chosen), *found)


def timed(run: Any) -> tuple[float, float]:
    """Return the middle of the fastest runs of each turn, and the median of all, in ms."""
    import time

    turns = []
    for turn in range(TURNS + 1):
        spent = []
        for _ in range(RUNS):
            began = time.perf_counter()
            run()
            spent.append(1e3 * (time.perf_counter() - began))
        turns += [spent] if turn else []
    return float(np.median([min(spent) for spent in turns])), float(np.median(turns))


def compare_sites(table: Any, chosen: dict[str, str], times: Sequence[Any], most: int) -> None:
    """Print the kernels of which the cost model is furthest off, as the model's own profile has them."""
    import re

    inside: dict[str, float] = defaultdict(float)
    for time in times:
        name = time.name if time.name in chosen else re.sub(r"(\.phase)?\.?\d+$", "", time.name)
        inside[name if name in chosen else "(no site)"] += time.us
    rows = [(site, 1e3 * table.of[site, name].ms, inside.pop(site, 0.0)) for site, name in chosen.items()]
    rows.append(("(no site)", 1e3 * table.fixed_ms, inside.pop("(no site)", 0.0)))
    rows.sort(key=lambda row: -abs(row[1] - row[2]))
    for site, alone, within in rows[:most]:
        print(f"  {site:<32} alone {alone:9.1f} us, in the model {within:9.1f} us", file=sys.stderr)
    print(f"  all: alone {sum(r[1] for r in rows):.0f} us, in the model {sum(r[2] for r in rows):.0f} us",
          file=sys.stderr)  # fmt: skip


def said(stage: str, done: int, total: int) -> None:
    """Say how far it is, on a line of its own every now and then."""
    if done == total or (stage == "measure" and done % 24 == 0):
        print(f"{stage} {done} of {total}", file=sys.stderr)


def main() -> None:
    """Run every model and number of threads in a process of its own; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--sites", type=int, default=0)
    parser.add_argument("--store", help="file of measurements; default: the one of `tvmq cost`")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.source:
        for row in rows_of(given.models, Path(given.source), int(given.threads), given.store, given.sites):
            print(json.dumps(asdict(row)), flush=True)
        return
    store = Store(ROOT / "out" / "bench", smoke=False)
    rows = []
    for model in given.models.split(","):
        for threads in given.threads.split(","):
            command = [sys.executable, __file__, "--models", model, "--threads", threads]
            command += ["--sites", str(given.sites), "--source", str(store.source(model))]
            command += ["--store", given.store] if given.store else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows += [Row(**json.loads(line)) for line in done.stdout.splitlines()]
    print("| model | bits | threads | predicted, ms | measured, ms | off | median of all runs, ms |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        numbers = f"{row.predicted:.3f} | {row.measured:.3f} | {100 * row.error:+.1f} % | {row.median:.3f}"
        print(f"| {row.model} | {row.precision} | {row.threads} | {numbers} |")
    if given.output:
        text = json.dumps([{**asdict(row), "error": row.error} for row in rows], indent=1)
        given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
