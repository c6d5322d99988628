"""Measure plans of mixed bits; scripts/plan.sh calls this.

Every plan is made in a process of its own and written to scripts/plan.json at once: what is there and still
holds is skipped. The table goes into README.md. --smoke checks the path with a net of noise, and leaves both
files alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import results
from accuracy import FLOAT, cell_key, float_scores, model_key, numbers_key
from beds import Bed, load
from cases import BY_NAME, CASES, EIGHT, Case, needed
from data import CACHE
from parts import ROOT, NotMeasuredError, environment, key, reason_in
from readme import put
from results import Row

from tvmq.environment import cpu_name
from tvmq.evaluation import compare

HERE = Path(__file__).parent
RESULTS = ROOT / "scripts" / "plan.json"
SOURCES = ("automatic.py", "prepared.py", "plan_evaluation.py", "pipeline.py")


@dataclass(frozen=True)
class Request:
    """What to measure."""

    cases: tuple[Case, ...]
    images: int
    preset: str
    threads: int
    cache: Path
    smoke: bool

    @property
    def results(self) -> Path:
        """Return the file of the rows."""
        return self.cache / "plan_smoke.json" if self.smoke else RESULTS


def parse(arguments: Sequence[str]) -> Request:
    """Return what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="scripts/plan.sh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a net of noise, no downloads")
    parser.add_argument("--rows", help=f"with commas between letters, of {letters()}; default: all")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set; default: 10000")
    parser.add_argument("--preset", default="default", help="of tvmq.compile; default: default")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"data and models; default: {CACHE}")
    given = parser.parse_args(arguments)
    asked = given.rows.split(",") if given.rows else [*letters()]
    if unknown := set(asked) - letters().keys():
        parser.error(f"{', '.join(sorted(unknown))} given, of {letters()} is wanted")
    names = [EIGHT] if given.smoke else [letters()[letter] for letter in asked]
    return Request(
        tuple(needed(names)), 16 if given.smoke else given.images, "fast" if given.smoke else given.preset,
        given.threads, given.cache.resolve(), given.smoke,
    )  # fmt: skip


def letters() -> dict[str, str]:
    """Return the cases' names by letter."""
    return {chr(ord("a") + at): case.name for at, case in enumerate(CASES)}


def measured(case: Case, bed: Bed, made: str, rows: dict[str, Row], request: Request) -> Row:
    """Return the row of one case, made in a child process."""
    folder = request.cache / "cells" / f"plan.{bed.name}.{made}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {"bits": case.bits, "preset": request.preset, **case.limits(rows)}
    # A search that was ended goes on where it was.
    log = str(request.cache / "cells" / f"plan.{bed.name}.jsonl")
    words = [json.dumps(options), json.dumps({"log": log, **case.budget}), request.images, request.threads]
    done = subprocess.run(
        [sys.executable, str(HERE / "child.py"), str(request.cache), bed.name, *map(str, words), str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts/shared'}:{ROOT / 'scripts/accuracy'}"},
    )
    try:
        if done.returncode:
            raise NotMeasuredError(reason_in(done.stderr) or f"exit code {done.returncode}")
        about = json.loads((folder / "about.json").read_text("utf-8"))
        scores = np.load(folder / "scores.npy")
    finally:
        shutil.rmtree(folder)
    exact = exact_scores(bed)[: request.images]
    return Row(
        name=case.name, key=made, images=len(scores), preset=request.preset, threads=request.threads,
        cpu=cpu_name(), comparison=compare(scores, exact, bed.labels[: request.images]), **about,
    )  # fmt: skip


def exact_scores(bed: Bed) -> np.ndarray:
    """Return the float model's scores, which are kept beside the bed."""
    path = float_scores(bed, cell_key(bed, FLOAT))
    if path.exists():
        return np.load(path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bed.model), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, batch)[0] for batch in bed.batches()])
    np.save(path, found)
    return found


def made_from(case: Case, bed: Bed, rows: dict[str, Row], request: Request) -> str:
    """Return a name for all that a row depends on."""
    files = [ROOT / "tvmq" / name for name in SOURCES]
    words = [model_key(bed), numbers_key(), case.bits, json.dumps(dict(case.budget)), request.preset]
    return key(files, [*words, json.dumps(case.limits(rows)), str(request.images), str(request.threads)])


def main(arguments: Sequence[str]) -> int:
    """Measure, show, and renew README.md."""
    request = parse(arguments)
    bed = load("tiny" if request.smoke else "vit_s", request.cache)
    rows = results.load(request.results)
    failed = []
    for case in request.cases:
        if case.after and case.after not in rows:
            failed.append(f"{case.name}: {case.after!r} was not measured")
            continue
        made = made_from(case, bed, rows, request)
        if case.name not in rows or rows[case.name].key != made:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            try:
                rows[case.name] = measured(case, bed, made, rows, request)
            except NotMeasuredError as error:
                failed.append(f"{case.name}: {error}")
                continue
            results.save(request.results, rows)
    if rows:
        table = results.markdown([rows[name] for name in BY_NAME if name in rows])
        print(table)
        if not request.smoke:
            put(ROOT / "README.md", "scripts/plan.sh", table)
    for why in failed:
        print(f"plan: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
