"""Make one plan in a process of its own and run it.

python child.py CACHE BED OPTIONS BUDGET IMAGES THREADS FOLDER

OPTIONS are tvmq.compile's, BUDGET tvmq.Budget's, both as JSON. Writes into FOLDER scores.npy and about.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from beds import load

import tvmq


def planned(compiled: tvmq.CompiledModel) -> dict[str, Any]:
    """Return what a report says of the plan, or the plan's own precisions."""
    report = compiled.search
    if report is None:
        found = Counter(str(site.precision or "float") for site in compiled.plan.sites)
        return {"bits": dict(found)}
    return {
        "bits": dict(Counter(group.precision for group in report.groups)),
        "ms": report.chosen.ms,
        "evaluations": len(report.evaluated),
        "metric": report.metric,
        "compared": report.chosen_metric,
        "made": report.final_metric,
    }


def main() -> None:
    """Compile, save, load, run."""
    cache, name, options, budget, images, threads, folder = sys.argv[1:]
    bed, to, given = load(name, Path(cache)), Path(folder), json.loads(options)
    samples = list(bed.calibration.values())
    if given["bits"] == "auto":
        given["budget"] = tvmq.Budget(**json.loads(budget))
    began = time.perf_counter()
    compiled = tvmq.compile(
        str(bed.model),
        calibration=[tuple(a[i : i + 1] for a in samples) for i in range(len(samples[0]))],
        threads=int(threads),
        progress=said,
        **given,
    )
    seconds = time.perf_counter() - began
    artifact = to / "model.tvmq"
    compiled.save(artifact)
    about = {"seconds": seconds, "bytes": artifact.stat().st_size, **planned(compiled)}
    loaded = tvmq.load(artifact, threads=int(threads))
    rows = [np.array(loaded(*bed.test(i, i + 1).values())) for i in range(int(images))]
    np.save(to / "scores.npy", np.concatenate(rows))
    (to / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def said(stage: str, done: int, total: int) -> None:
    """Say where it is."""
    if done in (0, total):
        print(f"{time.strftime('%H:%M:%S')} {stage} {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
